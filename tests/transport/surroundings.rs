//! Machines that lack something.

use std::collections::BTreeMap;

use duet::transport::{Settings, TransportError, Warning};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::world::{ECHO, Gateway, delivered, loopback, ping};

/// From now on the calling thread gets no IPv6 socket, as on a kernel that was started with `ipv6.disable=1`.
fn lose_ipv6() {
    let inet6 = u64::from(libc::AF_INET6.unsigned_abs());
    let is_inet6 =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, inet6).unwrap();
    let rules =
        BTreeMap::from([(libc::SYS_socket, vec![SeccompRule::new(vec![is_inet6]).unwrap()])]);
    let refuse = SeccompAction::Errno(libc::EAFNOSUPPORT.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Does something on a thread that has no IPv6, and whose threads have none.
fn without_ipv6(act: fn()) {
    let act = move || {
        lose_ipv6();
        act();
    };
    std::thread::spawn(act).join().unwrap();
}

fn start(listen: &str) -> Result<(Gateway, Vec<Warning>), TransportError> {
    Gateway::try_start(Settings { listen: listen.parse().unwrap(), ..loopback() })
}

#[test]
fn without_ipv6_the_default_address_serves_ipv4() {
    without_ipv6(|| {
        let (mut gateway, warnings) = start("[::]:0").unwrap();
        let said = warnings[0].to_string();
        assert!(said.contains("no IPv6") && said.contains("listen = \"0.0.0.0:0\""), "{said}");
        gateway.local.set_ip([127, 0, 0, 1].into());
        ping(&gateway.udp(), &[ECHO, 1]);
        gateway.tcp().echo(&[ECHO, 2]);
        assert_eq!(delivered(&gateway.finish()), 2);
    });
}

#[test]
fn without_ipv6_an_address_of_it_is_refused_with_what_to_do() {
    without_ipv6(|| {
        let said = start("[::1]:0").map(drop).unwrap_err().to_string();
        assert!(said.contains("[::1]:0") && said.contains("0.0.0.0"), "{said}");
    });
}
