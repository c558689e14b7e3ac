//! What callers of the control socket are told of errors below.

use api::{ErrorCode, RpcError};
use bdev::BdevError;
use nvmf::TargetError;

pub(super) fn not_found(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::NotFound, message)
}

pub(super) fn in_use(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::InUse, message)
}

pub(super) fn bdev_error(error: BdevError) -> RpcError {
    let code = match &error {
        BdevError::Claimed { .. } => ErrorCode::InUse,
        BdevError::Exists { .. } => ErrorCode::Exists,
        BdevError::Unknown { .. } => ErrorCode::NotFound,
        BdevError::Invalid { .. } => ErrorCode::InvalidParams,
        BdevError::NoQueue { .. } => ErrorCode::Limit,
        _ => ErrorCode::Failed,
    };
    RpcError::new(code, error.to_string())
}

pub(super) fn target_error(error: TargetError) -> RpcError {
    let code = match &error {
        TargetError::SubsystemExists { .. }
        | TargetError::NamespaceExists { .. }
        | TargetError::ListenerExists { .. } => ErrorCode::Exists,
        TargetError::UnknownSubsystem { .. }
        | TargetError::UnknownNamespace { .. }
        | TargetError::UnknownListener { .. } => ErrorCode::NotFound,
        TargetError::LimitReached { .. } => ErrorCode::Limit,
        _ => ErrorCode::InvalidParams,
    };
    RpcError::new(code, error.to_string())
}
