#!/usr/bin/env python3
"""Writes one ProVerif model of RESETs that peers of a dead node make for it. This version does not have
them (a device in doubt asks instead, R105 to R108); the models say what they would promise, and why a reset key
that all nodes share is refused (R61).

    reset_by_peers.py SCENARIO > model.pv

Any number of nodes, each with any number of lives and sessions. The attacker says who counts as dead, so
that a true and a false death are one case.

SCENARIO   what a node leaves for its peers, and what leaks
f4                  its reset key, sealed under the cluster's secret, bound to node and life
f4_leakopen         ... and what a peer has opened is public
f4_leakcs           ... and the cluster's secret is public
f4_noaad            the same, not bound: must break
f4_derived          nothing: the key is derived from the cluster's secret
f4_derived_leakcs   ... which is public
f4_tokens           one sealed token for each session
f4_tokens_leakcs    ... and the cluster's secret is public
f4_shared           one key for all nodes: must break

Queries: 1 a device believes a RESET: that node lost the session, or that life counts as dead. 2 ... and it is
for a record that the device sent in it. 3 must fail: a RESET for a dead life is believed. 4 believed: for a
record that was sent. 5 readings stay secret. 6 must fail: the node's own RESET is believed.
"""
import sys

SCENARIOS = {  # flags, the expected answers
    "f4": ("aad", "T T F T T F"),
    "f4_leakopen": ("aad leakopen", "T T F T T F"),
    "f4_leakcs": ("aad leakcs", "F F F T T F"),
    "f4_noaad": ("", "F F F T T F"),
    "f4_derived": ("derived aad", "T T F T T F"),
    "f4_derived_leakcs": ("derived aad leakcs", "F F F T T F"),
    "f4_tokens": ("tokens aad", "T T F T T F"),
    "f4_tokens_leakcs": ("tokens aad leakcs", "F F F T T F"),
    "f4_shared": ("shared aad", "F F F T T F"),
}

MODEL = """(* RESETs by peers: {title} *)
free c: channel. free cs, kall, reading: bitstring [private]. const RST, NONE: bitstring.
fun mac(bitstring,bitstring): bitstring. fun seal(bitstring,bitstring,bitstring): bitstring.
reduc forall k: bitstring, a: bitstring, t: bitstring; open(k,a,seal(k,a,t)) = t.
event Lost(bitstring,bitstring,bitstring). event Dead(bitstring,bitstring). event Sent(bitstring,bitstring). event Believed(bitstring,bitstring,bitstring,bitstring).
query n,g,s,r: bitstring; event(Believed(n,g,s,r)) ==> event(Lost(n,g,s)) || event(Dead(n,g)).
query n,g,s,r: bitstring; event(Believed(n,g,s,r)) ==> (event(Lost(n,g,s)) && event(Sent(s,r))) || (event(Dead(n,g)) && event(Sent(s,r))).
query n,g,s,r: bitstring; event(Believed(n,g,s,r)) ==> event(Lost(n,g,s)).
query n,g,s,r: bitstring; event(Believed(n,g,s,r)) ==> event(Sent(s,r)).
query attacker(reading).
query n,g,s,r: bitstring; event(Believed(n,g,s,r)) ==> event(Dead(n,g)).
(* a session's id names its life: a node knows which sessions it holds *)
let Session(n: bitstring,g: bitstring,k: bitstring) = new x: bitstring; new up: bitstring; let s = (g,x) in out(c,s); let tok = mac(k,s) in {token}
   ( (!(new nonce: bitstring; let r = seal(up,(s,nonce),reading) in event Sent(s,r); out(c,(nonce,r)); in(c,(=RST,=s,m: bitstring)); if m = mac(tok,r) then event Believed(n,g,s,r)))
   | (in(c,lose: bitstring); event Lost(n,g,s); !(in(c,r: bitstring); out(c,(RST,s,mac(tok,r)))))).
(* the last line: records of sessions that are not its own, answered under its own key *)
let Node = new n: bitstring; out(c,n); !(new g: bitstring; out(c,g); {key} {deposit}
   ( !Session(n,g,k)
   | !(in(c,(g2: bitstring,x: bitstring,r: bitstring)); if g2 <> g then out(c,(RST,(g2,x),mac(mac(k,(g2,x)),r)))))).
let Opener = {opener}.
process {leak} (!Node | Opener)
"""


def model(name):
    flags = SCENARIOS[name][0].split()
    bound = "(n,g)" if "aad" in flags else "NONE"
    key = "new k: bitstring;"
    if "shared" in flags:
        key = "let k = kall in"
    elif "derived" in flags:
        key = "let k = mac(cs,(n,g)) in"
    deposit = "" if {"tokens", "derived"} & set(flags) else f"out(c, seal(cs,{bound},k));"
    leaked = lambda what: f"out(c,{what});" if "leakopen" in flags else ""
    if "tokens" in flags:
        opener = (
            "!(in(c,(n: bitstring,g: bitstring,s: bitstring,box: bitstring)); event Dead(n,g); let t = open(cs,(n,g,s),box) in\n"
            f"     {leaked('t')} !(in(c,r: bitstring); out(c,(RST,s,mac(t,r)))))"
        )
    else:
        opened = "mac(cs,(n,g))" if "derived" in flags else f"open(cs,{bound},box)"
        opener = (
            f"!(in(c,(n: bitstring,g: bitstring,box: bitstring)); event Dead(n,g); let k = {opened} in\n"
            f"     {leaked('k')} !(in(c,(s: bitstring,r: bitstring)); out(c,(RST,s,mac(mac(k,s),r)))))"
        )
    return MODEL.format(
        title=f"{name} {flags}",
        token="out(c, seal(cs,(n,g,s),tok));" if "tokens" in flags else "",
        key=key,
        deposit=deposit,
        opener=opener,
        leak="out(c,cs);" if "leakcs" in flags else "",
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in SCENARIOS:
        sys.exit(__doc__)
    print(model(sys.argv[1]))
