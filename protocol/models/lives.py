#!/usr/bin/env python3
"""Writes one ProVerif model of a node that is cut off, comes back, or whose cluster's secret leaks, where peers
may answer for it (see reset_by_peers.py).

    lives.py SCENARIO > model.pv

Phase 0: the node holds its lease and grants under k1. 1: cut off from the exchange, but alive; peers open k1. 2: it is
back. 3 (`cs` only): the cluster's secret is replaced.

SCENARIO
rotate      from the end of its lease, by its own clock, it grants under k2, which it left nowhere
stay        must break: it goes on under k1 until it hears that k1 was opened
back        it dies and comes back in phase 2: k1 only answers for lost sessions, k2 grants new ones
back_same   must break: it comes back and grants under k1
cs          the secret leaks in phase 1, is still used in 2, and replaced in 3, with a life k3

Queries: 1 New(s) => lost: sessions granted afterwards cannot be reset by who holds what leaked. 2 Old(s) => lost: must
fail, the one handshake that a false death costs. 3 Late(s) => lost. 4, 5 must fail: New and Late can happen, by the
node's own RESET.
"""
import sys

SCENARIOS = {
    "rotate": "T F T F F",
    "stay": "F F T F F",
    "back": "T F T F F",
    "back_same": "F F T F F",
    "cs": "T F F F F",
}


def at(phase, since=0):
    return f"phase {phase}; " if phase > since else ""


def sessions(granted, key, believed):
    """Sessions granted in a phase; their devices may take a RESET in any later one."""
    devices = " | ".join(
        f"({at(p, granted)}in(c,(=RST,=s,m: bitstring)); if m = mac(mac({key},s),r) then event {believed}(s))"
        for p in range(granted, 4)
    )
    losses = " | ".join(
        f"({at(p, granted)}in(c,x: bitstring); event Lost(s); !(in(c,q: bitstring); out(c,(RST,s,mac(mac({key},s),q)))))"
        for p in range(granted, 4)
    )
    return f"({at(granted)}!(new s: bitstring; out(c,s); new r: bitstring; out(c,r); ({devices} | ({losses})))) "


OPENER = (
    "phase 1; let k = open(cs,seal(cs,k1)) in out(c,k); "
    "!(in(c,(s: bitstring,r: bitstring)); out(c,(RST,s,mac(mac(k,s),r))))"
)


def model(name):
    body = [sessions(0, "k1", "Old"), "(out(c,seal(cs,k1)))"]
    if name in ("rotate", "stay"):
        new = sessions(1, "k1" if name == "stay" else "k2", "New")
        body += [OPENER, new, sessions(2, "k2", "Late"), "phase 2; out(c,seal(cs,k2))"]
    if name in ("back", "back_same"):
        new = sessions(2, "k1" if name == "back_same" else "k2", "New")
        body += [OPENER, new, sessions(3, "k2", "Late"), "phase 2; out(c,seal(cs,k2))"]
    if name == "cs":
        late, new = sessions(2, "k1", "Late"), sessions(3, "k3", "New")
        body += ["phase 1; out(c,cs)", late, new, "phase 3; out(c,seal(cs3,k3))"]
    return f"""(* lives of one node: {name} *)
free c: channel. free cs, cs3, k1, k2, k3: bitstring [private]. const RST: bitstring.
fun mac(bitstring,bitstring): bitstring. fun seal(bitstring,bitstring): bitstring. reduc forall k: bitstring, t: bitstring; open(k,seal(k,t)) = t.
event Lost(bitstring). event Old(bitstring). event New(bitstring). event Late(bitstring).
query s: bitstring; event(New(s)) ==> event(Lost(s)).
query s: bitstring; event(Old(s)) ==> event(Lost(s)).
query s: bitstring; event(Late(s)) ==> event(Lost(s)).
query s: bitstring; event(New(s)). query s: bitstring; event(Late(s)).
process {chr(10).join([""] + [f"({b})" if i == 0 else f" | ({b})" for i, b in enumerate(body)])}
"""


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in SCENARIOS:
        sys.exit(__doc__)
    print(model(sys.argv[1]))
