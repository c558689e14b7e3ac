//! What verbs.h and rdma_cma.h define as `static inline`: calls through operation tables.
//!
//! A device's provider fills the tables. The tables of a context and of an extended CQ are complete
//! for everything called here; an extended QP has the operations asked for when it was made, and
//! calling another one is a programmer's error.

use std::mem::{offset_of, size_of};

use libc::{c_int, c_uint, c_void, sockaddr};

use crate::bindings::*;
use crate::types::*;

/// Calls operation `$op` of the table that object `$object` carries.
macro_rules! through_object {
    ($object:ident: $type:ty; $(
        fn $name:ident = $op:ident($($arg:ident: $arg_type:ty),*) $(-> $result:ty)?;
    )*) => {$(
        #[inline]
        pub unsafe fn $name($object: *mut $type, $($arg: $arg_type),*) $(-> $result)? {
            // SAFETY: the caller passes a live object; the arguments go on unchanged.
            unsafe {
                let operation = (*$object).$op;
                operation.expect(concat!("no ", stringify!($op)))($object, $($arg),*)
            }
        }
    )*};
}

/// Calls operation `$op` of the context that object `$object` belongs to.
macro_rules! through_context {
    ($(fn $name:ident = $op:ident(
        $object:ident: $type:ty $(, $arg:ident: $arg_type:ty)*) -> $result:ty;
    )*) => {$(
        #[inline]
        pub unsafe fn $name($object: *mut $type, $($arg: $arg_type),*) -> $result {
            // SAFETY: the caller passes a live object, whose context therefore lives too.
            unsafe {
                let operation = (*(*$object).context).ops.$op;
                operation.expect(concat!("no ", stringify!($op)))($object, $($arg),*)
            }
        }
    )*};
}

through_context! {
    fn ibv_poll_cq = poll_cq(cq: ibv_cq, num_entries: i32, wc: *mut ibv_wc) -> c_int;
    fn ibv_req_notify_cq = req_notify_cq(cq: ibv_cq, solicited_only: i32) -> c_int;
    fn ibv_post_send = post_send(
        qp: ibv_qp, wr: *mut ibv_send_wr, bad_wr: *mut *mut ibv_send_wr) -> c_int;
    fn ibv_post_recv = post_recv(
        qp: ibv_qp, wr: *mut ibv_recv_wr, bad_wr: *mut *mut ibv_recv_wr) -> c_int;
    fn ibv_post_srq_recv = post_srq_recv(
        srq: ibv_srq, recv_wr: *mut ibv_recv_wr, bad_recv_wr: *mut *mut ibv_recv_wr) -> c_int;
    fn ibv_dealloc_mw = dealloc_mw(mw: ibv_mw) -> c_int;
}

through_object! { qp: ibv_qp_ex;
    fn ibv_wr_start = wr_start();
    fn ibv_wr_complete = wr_complete() -> c_int;
    fn ibv_wr_abort = wr_abort();
    fn ibv_wr_send = wr_send();
    fn ibv_wr_send_imm = wr_send_imm(imm_data: __be32);
    fn ibv_wr_send_inv = wr_send_inv(invalidate_rkey: u32);
    fn ibv_wr_send_tso = wr_send_tso(hdr: *mut c_void, hdr_sz: u16, mss: u16);
    fn ibv_wr_rdma_read = wr_rdma_read(rkey: u32, remote_addr: u64);
    fn ibv_wr_rdma_write = wr_rdma_write(rkey: u32, remote_addr: u64);
    fn ibv_wr_rdma_write_imm = wr_rdma_write_imm(rkey: u32, remote_addr: u64, imm_data: __be32);
    fn ibv_wr_atomic_cmp_swp = wr_atomic_cmp_swp(
        rkey: u32, remote_addr: u64, compare: u64, swap: u64);
    fn ibv_wr_atomic_fetch_add = wr_atomic_fetch_add(rkey: u32, remote_addr: u64, add: u64);
    fn ibv_wr_bind_mw = wr_bind_mw(
        mw: *mut ibv_mw, rkey: u32, bind_info: *const ibv_mw_bind_info);
    fn ibv_wr_local_inv = wr_local_inv(invalidate_rkey: u32);
    fn ibv_wr_set_ud_addr = wr_set_ud_addr(ah: *mut ibv_ah, remote_qpn: u32, remote_qkey: u32);
    fn ibv_wr_set_xrc_srqn = wr_set_xrc_srqn(remote_srqn: u32);
    fn ibv_wr_set_inline_data = wr_set_inline_data(addr: *mut c_void, length: usize);
    fn ibv_wr_set_inline_data_list = wr_set_inline_data_list(
        num_buf: usize, buf_list: *const ibv_data_buf);
    fn ibv_wr_set_sge = wr_set_sge(lkey: u32, addr: u64, length: u32);
    fn ibv_wr_set_sge_list = wr_set_sge_list(num_sge: usize, sg_list: *const ibv_sge);
}

through_object! { cq: ibv_cq_ex;
    fn ibv_start_poll = start_poll(attr: *mut ibv_poll_cq_attr) -> c_int;
    fn ibv_next_poll = next_poll() -> c_int;
    fn ibv_end_poll = end_poll();
    fn ibv_wc_read_opcode = read_opcode() -> ibv_wc_opcode::Type;
    fn ibv_wc_read_vendor_err = read_vendor_err() -> u32;
    fn ibv_wc_read_byte_len = read_byte_len() -> u32;
    fn ibv_wc_read_imm_data = read_imm_data() -> __be32;
    fn ibv_wc_read_invalidated_rkey = read_imm_data() -> u32;
    fn ibv_wc_read_qp_num = read_qp_num() -> u32;
    fn ibv_wc_read_src_qp = read_src_qp() -> u32;
    fn ibv_wc_read_wc_flags = read_wc_flags() -> c_uint;
    fn ibv_wc_read_slid = read_slid() -> u32;
    fn ibv_wc_read_sl = read_sl() -> u8;
    fn ibv_wc_read_dlid_path_bits = read_dlid_path_bits() -> u8;
    fn ibv_wc_read_completion_ts = read_completion_ts() -> u64;
    fn ibv_wc_read_completion_wallclock_ns = read_completion_wallclock_ns() -> u64;
    fn ibv_wc_read_cvlan = read_cvlan() -> u16;
    fn ibv_wc_read_flow_tag = read_flow_tag() -> u32;
    fn ibv_wc_read_tm_info = read_tm_info(tm_info: *mut ibv_wc_tm_info);
}

#[inline]
pub unsafe fn ibv_cq_ex_to_cq(cq: *mut ibv_cq_ex) -> *mut ibv_cq {
    cq.cast()
}

/// The extended operations of a context, where the library that made it has field `$op` at all and
/// the provider filled it.
///
/// An extended context ends with the plain one, is marked by all ones in `abi_compat`, and grows at
/// its front: `sz` says how much of it there is.
macro_rules! extended_operation {
    ($context:expr, $op:ident) => {{
        let context: *mut ibv_context = $context;
        let marked = (*context).abi_compat as usize == usize::MAX;
        let extended: *mut verbs_context =
            context.byte_sub(offset_of!(verbs_context, context)).cast();
        let wanted = size_of::<verbs_context>() - offset_of!(verbs_context, $op);
        // `sz` lies just before the plain context, in every version that has the mark.
        if marked && (*extended).sz >= wanted { (*extended).$op } else { None }
    }};
}

/// What the functions below do when a provider lacks the operation: `errno`, and no object.
fn unsupported<T>() -> Option<*mut T> {
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = libc::EOPNOTSUPP };
    None
}

/// The real `ibv_query_port`: fills as much of `port_attr` as this crate knows of.
#[inline]
pub unsafe fn ___ibv_query_port(
    context: *mut ibv_context,
    port_num: u8,
    port_attr: *mut ibv_port_attr,
) -> c_int {
    // SAFETY: the caller passes a live context and room for the attributes.
    unsafe {
        match extended_operation!(context, query_port) {
            Some(query) => query(context, port_num, port_attr, size_of::<ibv_port_attr>()),
            None => {
                port_attr.write_bytes(0, 1);
                ibv_query_port(context, port_num, port_attr.cast())
            }
        }
    }
}

#[inline]
pub unsafe fn ibv_query_device_ex(
    context: *mut ibv_context,
    input: *const ibv_query_device_ex_input,
    attr: *mut ibv_device_attr_ex,
) -> c_int {
    // SAFETY: the caller passes a live context, room for the attributes, and an input or null.
    unsafe {
        if !input.is_null() && (*input).comp_mask != 0 {
            return libc::EINVAL;
        }
        if let Some(query) = extended_operation!(context, query_device_ex) {
            let result = query(context, input, attr, size_of::<ibv_device_attr_ex>());
            if result != libc::EOPNOTSUPP && result != libc::ENOSYS {
                return result;
            }
        }
        attr.write_bytes(0, 1);
        ibv_query_device(context, &raw mut (*attr).orig_attr)
    }
}

#[inline]
pub unsafe fn ibv_create_cq_ex(
    context: *mut ibv_context,
    cq_attr: *mut ibv_cq_init_attr_ex,
) -> Option<*mut ibv_cq_ex> {
    // SAFETY: the caller passes a live context and filled attributes.
    unsafe {
        match extended_operation!(context, create_cq_ex) {
            Some(create) => Some(create(context, cq_attr)),
            None => unsupported(),
        }
    }
}

#[inline]
pub unsafe fn ibv_create_qp_ex(
    context: *mut ibv_context,
    qp_init_attr_ex: *mut ibv_qp_init_attr_ex,
) -> Option<*mut ibv_qp> {
    // SAFETY: the caller passes a live context and filled attributes, which start with the plain
    // attributes.
    unsafe {
        if (*qp_init_attr_ex).comp_mask == ibv_qp_init_attr_mask::IBV_QP_INIT_ATTR_PD.0 {
            return Some(ibv_create_qp((*qp_init_attr_ex).pd, qp_init_attr_ex.cast()));
        }
        match extended_operation!(context, create_qp_ex) {
            Some(create) => Some(create(context, qp_init_attr_ex)),
            None => unsupported(),
        }
    }
}

/// Registers memory; optional access flags need the newer of the library's two symbols.
#[inline]
pub unsafe fn __ibv_reg_mr(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    access: c_uint,
    is_access_const: c_int,
) -> *mut ibv_mr {
    let optional = ib_uverbs_access_flags::IB_UVERBS_ACCESS_OPTIONAL_RANGE.0;
    // SAFETY: the caller's contract is that of both functions.
    unsafe {
        if is_access_const != 0 && access & optional == 0 {
            ibv_reg_mr(pd, addr, length, access as c_int)
        } else {
            ibv_reg_mr_iova2(pd, addr, length, addr as u64, access)
        }
    }
}

#[inline]
pub unsafe fn ibv_alloc_mw(pd: *mut ibv_pd, type_: ibv_mw_type::Type) -> Option<*mut ibv_mw> {
    // SAFETY: the caller passes a live protection domain.
    unsafe {
        match (*(*pd).context).ops.alloc_mw {
            Some(allocate) => Some(allocate(pd, type_)),
            None => unsupported(),
        }
    }
}

#[inline]
pub unsafe fn ibv_bind_mw(qp: *mut ibv_qp, mw: *mut ibv_mw, mw_bind: *mut ibv_mw_bind) -> c_int {
    // SAFETY: the caller passes live objects.
    unsafe {
        match (*(*mw).context).ops.bind_mw {
            Some(bind) if (*mw).type_ == ibv_mw_type::IBV_MW_TYPE_1 => bind(qp, mw, mw_bind),
            _ => libc::EINVAL,
        }
    }
}

/// The rkey whose low 8 bits, the consumer's part, are one further; they wrap.
#[inline]
pub unsafe fn ibv_inc_rkey(rkey: u32) -> u32 {
    (rkey & !0xff) | (rkey.wrapping_add(1) & 0xff)
}

/// Non-zero where bit `qpt` of `caps` is set.
#[inline]
pub unsafe fn ibv_is_qpt_supported(caps: u32, qpt: ibv_qp_type::Type) -> c_int {
    c_int::from(caps & (1 << qpt) != 0)
}

#[inline]
pub unsafe fn rdma_get_local_addr(id: &rdma_cm_id) -> &sockaddr {
    // SAFETY: every member of the union starts with a socket address.
    unsafe { &id.route.addr.src_addr_union.src_addr }
}

#[inline]
pub unsafe fn rdma_get_peer_addr(id: &rdma_cm_id) -> &sockaddr {
    // SAFETY: every member of the union starts with a socket address.
    unsafe { &id.route.addr.dst_addr_union.dst_addr }
}

/// Sets `errno` to a verb's result, and gives the -1 or 0 of an rdma_cm function.
#[inline]
pub unsafe fn rdma_seterrno(ret: c_int) -> c_int {
    if ret == 0 {
        return 0;
    }
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = ret };
    -1
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use super::*;

    #[test]
    fn only_the_low_byte_of_an_rkey_advances() {
        // SAFETY: pure arithmetic.
        let next = |rkey| unsafe { ibv_inc_rkey(rkey) };
        assert_eq!(next(0x1234_5678), 0x1234_5679);
        assert_eq!(next(0x1234_56ff), 0x1234_5600);
        assert_eq!(next(u32::MAX), 0xffff_ff00);
    }

    #[test]
    fn an_operation_is_called_only_where_the_library_has_it() {
        unsafe extern "C" fn query(
            _: *mut ibv_context,
            port: u8,
            attr: *mut ibv_port_attr,
            len: usize,
        ) -> c_int {
            assert_eq!(len, size_of::<ibv_port_attr>());
            // SAFETY: the test passes room for the attributes.
            unsafe { (*attr).lid = u16::from(port) };
            0
        }
        // SAFETY: zero is a valid value of every field; the pointers stay within `extended`.
        unsafe {
            let mut extended: verbs_context = std::mem::zeroed();
            let base = &raw mut extended;
            (*base).query_port = Some(query);
            (*base).sz = size_of::<verbs_context>();
            (*base).context.abi_compat = usize::MAX as *mut c_void;
            let context: *mut ibv_context =
                base.byte_add(offset_of!(verbs_context, context)).cast();
            let mut attr: ibv_port_attr = std::mem::zeroed();
            assert_eq!(___ibv_query_port(context, 7, &raw mut attr), 0);
            assert_eq!(attr.lid, 7);

            assert!(extended_operation!(context, query_port).is_some());
            (*base).sz -= size_of::<usize>();
            assert!(extended_operation!(context, query_port).is_none(), "an older library");
            (*base).sz += size_of::<usize>();
            (*base).context.abi_compat = null_mut();
            assert!(extended_operation!(context, query_port).is_none(), "not extended");
        }
    }
}
