//! Fabrics commands, and what the answers of admin commands mean.

use std::time::Instant;

use dma::DmaSpan;
use nvme_spec::command::Sqe;
use nvme_spec::fabrics::{
    CATTR_DISABLE_SQ_FLOW_CONTROL, Connect, ConnectData, PROPERTY_4_BYTES, PROPERTY_8_BYTES,
    Property, fctype_of,
};
use nvme_spec::log_page::GetLogPage;
use nvme_spec::opcode;
use zerocopy::FromZeros;

use crate::options::Options;
use crate::slots::Command;
use crate::spans::Spans;

/// A Connect command for queue `qid` with `entries` entries. We never have more commands
/// outstanding than the queue has room for, so that we do not need SQHD: without it a read ends
/// with its data.
pub(crate) fn connect(qid: u16, entries: u16, kato_ms: u32) -> Sqe {
    let mut connect = Connect::new_zeroed();
    connect.opcode = opcode::FABRICS;
    connect.fctype = fctype_of::CONNECT;
    connect.qid = qid.into();
    connect.sqsize_z = (entries - 1).into();
    connect.cattr = CATTR_DISABLE_SQ_FLOW_CONTROL;
    connect.kato_ms = kato_ms.into();
    zerocopy::transmute!(connect)
}

/// The Connect command of I/O queue `qid` of a controller, for `depth` commands at a time. `page`
/// holds its data until it completes.
pub fn connect_io(
    options: &Options,
    cntlid: u16,
    qid: u16,
    depth: u16,
    page: DmaSpan,
    deadline: Instant,
) -> Command {
    let data = connect_data(options, cntlid);
    page.write_obj(0, &data);
    let data = Spans::from(page.subspan(0, size_of_val(&data) as u32));
    let sqe = connect(qid, entries(depth), 0);
    Command { tag: 0, sqe, data, may_be_short: false, deadline: Some(deadline) }
}

/// Entries of a queue for so many commands at a time: one always stays free.
pub(crate) fn entries(depth: u16) -> u16 {
    depth + 1
}

/// The data of a Connect command.
pub(crate) fn connect_data(options: &Options, cntlid: u16) -> ConnectData {
    let mut data = ConnectData::new_zeroed();
    data.hostid = *options.host.id.as_bytes();
    data.cntlid = cntlid.into();
    // Names have been checked: they are shorter than the fields.
    data.subnqn[..options.subnqn.len()].copy_from_slice(options.subnqn.as_bytes());
    data.hostnqn[..options.host.nqn.len()].copy_from_slice(options.host.nqn.as_bytes());
    data
}

/// Property Get of a property of 4 or 8 bytes.
pub(crate) fn property_get(offset: u32, eight_bytes: bool) -> Sqe {
    let attrib = if eight_bytes { PROPERTY_8_BYTES } else { PROPERTY_4_BYTES };
    property(fctype_of::PROPERTY_GET, offset, attrib, 0)
}

/// Property Set of a property of 4 bytes.
pub(crate) fn property_set(offset: u32, value: u32) -> Sqe {
    property(fctype_of::PROPERTY_SET, offset, PROPERTY_4_BYTES, value.into())
}

fn property(fctype: u8, offset: u32, attrib: u8, value: u64) -> Sqe {
    let mut property = Property::new_zeroed();
    property.opcode = opcode::FABRICS;
    property.fctype = fctype;
    property.attrib = attrib;
    property.offset = offset.into();
    property.value = value.into();
    zerocopy::transmute!(property)
}

/// Get Log Page of `bytes` bytes from `offset` on; events that it clears are cleared.
pub(crate) fn log_page(lid: u8, nsid: u32, offset: u64, bytes: u64) -> Sqe {
    let mut sqe = Sqe::new(opcode::admin::GET_LOG_PAGE, nsid);
    let page =
        GetLogPage { lid, lsp: 0, rae: false, bytes, offset, offset_is_index: false, lsi: 0 };
    page.set(&mut sqe);
    sqe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Transport;
    use nvme_spec::fabrics::{fctype, text};
    use nvme_spec::registers::{CAP, CC};
    use zerocopy::{FromBytes, IntoBytes};

    #[test]
    fn fabrics_commands() {
        let sqe = connect(3, 129, 5000);
        let connect = Connect::ref_from_bytes(sqe.as_bytes()).unwrap();
        assert_eq!((sqe.opcode(), fctype(&sqe)), (0x7F, fctype_of::CONNECT));
        assert_eq!((connect.qid.get(), connect.sqsize_z.get()), (3, 128));
        assert_eq!((connect.cattr, connect.kato_ms.get()), (4, 5000));
        let get = property_get(CAP, true);
        let get = Property::ref_from_bytes(get.as_bytes()).unwrap();
        assert_eq!((get.fctype, get.attrib, get.offset.get()), (4, 1, 0));
        let set = property_set(CC, 0x0046_0001);
        let set = Property::ref_from_bytes(set.as_bytes()).unwrap();
        assert_eq!((set.fctype, set.attrib, set.offset.get()), (0, 0, 0x14));
        assert_eq!(set.value.get(), 0x0046_0001);
        let addr = "127.0.0.1:4420".parse().unwrap();
        let options = Options::new(Transport::Tcp, addr, "nqn.2026-11.io.forebay:one");
        let data = connect_data(&options, 9);
        assert_eq!((data.cntlid.get(), text(&data.subnqn)), (9, Some(&*options.subnqn)));
        assert_eq!(text(&data.hostnqn), Some(&*options.host.nqn));
        assert_eq!(data.hostid, *options.host.id.as_bytes());
    }
}
