//! What a response says when a call failed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Kinds of failure. The first five are JSON-RPC's own, the others Forebay's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "i32", from = "i32")]
pub enum ErrorCode {
    /// -32700: the line is no JSON.
    Parse,
    /// -32600: the line is JSON, but no request.
    InvalidRequest,
    /// -32601: there is no such method.
    UnknownMethod,
    /// -32602: a parameter is missing, unknown or out of range; the details name it.
    InvalidParams,
    /// -32603: a defect of the daemon.
    Internal,
    /// -32001: the device, bdev, export or host named does not exist.
    NotFound,
    /// -32002: something of that name exists already.
    Exists,
    /// -32003: somebody uses it; the details say who.
    InUse,
    /// -32004: it would destroy something; the details say what, and `force` overrides.
    NeedsForce,
    /// -32005: the machine lacks something; the details say what and how to get it.
    Unavailable,
    /// -32006: the daemon's limit is reached.
    Limit,
    /// -32007: the operation was tried and failed.
    Failed,
    /// A code that this version does not know.
    Other(i32),
}

const CODES: [(ErrorCode, i32); 12] = [
    (ErrorCode::Parse, -32700),
    (ErrorCode::InvalidRequest, -32600),
    (ErrorCode::UnknownMethod, -32601),
    (ErrorCode::InvalidParams, -32602),
    (ErrorCode::Internal, -32603),
    (ErrorCode::NotFound, -32001),
    (ErrorCode::Exists, -32002),
    (ErrorCode::InUse, -32003),
    (ErrorCode::NeedsForce, -32004),
    (ErrorCode::Unavailable, -32005),
    (ErrorCode::Limit, -32006),
    (ErrorCode::Failed, -32007),
];

impl From<ErrorCode> for i32 {
    fn from(code: ErrorCode) -> i32 {
        match code {
            ErrorCode::Other(number) => number,
            code => CODES.iter().find(|(known, _)| *known == code).map_or(-32603, |pair| pair.1),
        }
    }
}

impl From<i32> for ErrorCode {
    fn from(number: i32) -> ErrorCode {
        let known = CODES.iter().find(|(_, known)| *known == number);
        known.map_or(ErrorCode::Other(number), |pair| pair.0)
    }
}

/// What a program can use of an error, and a person act upon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetails {
    /// The parameter that is wrong, such as `hosts[1]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What was found: holders of a device, signatures on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<String>,
    /// What to do next: a command, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// The error object of a response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct RpcError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// One sentence for people.
    pub message: String,
    /// More, where there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ErrorDetails>,
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl RpcError {
    /// An error without details.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into(), data: None }
    }

    /// A parameter is wrong: `field` as it is called in the request, and why.
    pub fn invalid(field: impl Into<String>, reason: impl fmt::Display) -> RpcError {
        let field = field.into();
        let error = RpcError::new(ErrorCode::InvalidParams, format!("{field}: {reason}"));
        let details = ErrorDetails { field: Some(field), ..ErrorDetails::default() };
        RpcError { data: Some(details), ..error }
    }

    /// Adds what was found.
    #[must_use]
    pub fn with_found(mut self, found: Vec<String>) -> RpcError {
        self.data.get_or_insert_default().found = found;
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Into<String>) -> RpcError {
        self.data.get_or_insert_default().advice = Some(advice.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire() {
        for (code, number) in CODES {
            assert_eq!(i32::from(code), number);
            assert_eq!(ErrorCode::from(number), code);
        }
        assert_eq!(i32::from(ErrorCode::from(-1)), -1);
    }

    #[test]
    fn the_page_has_every_code_and_every_method() {
        let page = include_str!("../../../docs/control-socket.md");
        for (code, number) in CODES {
            assert!(page.contains(&format!("\n| {number} | ")), "{code:?}");
        }
        for method in crate::METHODS {
            assert!(page.contains(&format!("\n| `{method}` | ")), "{method}");
        }
    }

    #[test]
    fn details_are_left_out_where_there_are_none() {
        let error = RpcError::new(ErrorCode::NotFound, "no such bdev");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(text, r#"{"code":-32001,"message":"no such bdev"}"#);
        let error = error.with_found(vec!["ram0".into()]).with_advice("forebay bdev list");
        let text = serde_json::to_string(&error).unwrap();
        let data = r#""data":{"found":["ram0"],"advice":"forebay bdev list"}"#;
        assert!(text.contains(data), "{text}");
    }
}
