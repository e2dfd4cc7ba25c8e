#!/usr/bin/env python3
"""Writes one ProVerif model of the handshake without a reading, with its first records.

    plain.py SOURCES MODE SCENARIO [FLAG ...] > model.pv

SOURCES   eph, xor, cli, or several of them with commas: then all at once on the same keys
MODE      cert, psk             a certificate, or a registered id with its key
SCENARIO  S0                    the attacker gets the network
          KS                    ... and the gateway's key from the start
          Lhedge                ... and the random values of the devices, whose scalars are hedged
FLAG      lite                  the attacker registers no devices, all devices know the gateway
          trace                 attack traces
          pskacc                without a certificate the registration key enters ACCEPT's key (R24)

These models are of the draft in which `sig` stood outside ACCEPT's sealed text; early.py has it inside,
as the protocol has, and asks the same (its Q1 to Q4, Q6, Q7).

Queries, in this order: Q1 records up, Q2 records down are secret; Q3 the device accepts: the gateway
answered; Q4 the gateway confirms: the device accepted; Q4b the first record is the device's; Q5 pending:
the device began; Q5i the same, once (must fail: a HELLO can be played back, which the marks make
harmless); Q6 records down are the gateway's; Q7 no key and nonce for two texts; two that must fail: both
ends can be reached. Where something leaks: Q1 to Q4, Q5, Q6, and not how often.
"""
import sys

HEAD = """set attacker = active.
set reconstructTrace = {trace}.
free c: channel.
type G. type exponent.
const g: G.
fun exp(G, exponent): G.
equation forall x: exponent, y: exponent; exp(exp(g,x),y) = exp(exp(g,y),x).
(* the same key pair signs and decapsulates: its public key is exp(g,k) *)
fun sign(exponent, bitstring): bitstring.
reduc forall k: exponent, m: bitstring; verify(exp(g,k), m, sign(k,m)) = true.
fun aenc(bitstring, bitstring, bitstring, bitstring): bitstring.
reduc forall k: bitstring, n: bitstring, a: bitstring, m: bitstring; adec(k,n,a,aenc(k,n,a,m)) = m.
fun hkey(G,G,G,bitstring): bitstring.
fun hexp(G,G,G,bitstring): bitstring.
fun mk(bitstring,bitstring,bitstring,bitstring): bitstring.
fun k2(bitstring,bitstring): bitstring.
fun kacc(bitstring): bitstring.
fun kup(bitstring): bitstring.
fun kdn(bitstring): bitstring.
fun h(bitstring): bitstring.
fun mac(bitstring,bitstring): bitstring.
fun hedge(exponent,bitstring,bitstring): exponent.
fun xr(bitstring,bitstring): bitstring.
reduc forall a: bitstring, b: bitstring; xrl(xr(a,b),a) = b.
reduc forall a: bitstring, b: bitstring; xrr(xr(a,b),b) = a.
fun g2b(G): bitstring [typeConverter].
fun aid(bitstring): bitstring.
const HELLO: bitstring. const ACC: bitstring. const DUP: bitstring. const DDN: bitstring.
{profiles} const MODE: bitstring. const n0: bitstring. const n1: bitstring. const none: bitstring.
const LH: bitstring. const LA: bitstring. const LB: bitstring. const certlabel: bitstring.
table reg(bitstring, G, bitstring, bool).
table seen(bitstring).
free skS: exponent [private].

event DevStart(bitstring,G,G,G).
event DevAccept(bitstring,G,G,G,bitstring,bitstring,bitstring).
event GwPending(bool,bitstring,G,G,G,bitstring,bitstring,bitstring).
event GwConfirm(bool,bitstring,G,G,G,bitstring,bitstring,bitstring,bitstring).
event DevSent(bitstring,G,G,bitstring,bitstring).
event DevDown(bitstring,G,G,bitstring,bitstring).
event GwDown(bool,bitstring,G,G,bitstring,bitstring).
event DUp(G,bitstring). event DDn(bool,bitstring).
event Seal(bitstring,bitstring,bitstring).
"""

S = "exp(g,skS)"
ACCEPTED = f"DevAccept(i,pd,{S},E,s,m,x)"
PENDING = f"GwPending(true,i,pd,{S},E,s,m,x)"
CONFIRMED = f"GwConfirm(true,i,pd,{S},E,s,m,x,d)"
STARTED = f"DevStart(i,pd,{S},E)"
SENT = f"DevSent(i,pd,{S},m,d)"
TAKEN, GIVEN = f"DevDown(i,pd,{S},m,d)", f"GwDown(true,i,pd,{S},m,d)"
VARIABLES = (
    "d: bitstring, i: bitstring, pd: G, E: G, s: bitstring, m: bitstring, x: bitstring, "
    "k: bitstring, n: bitstring, a: bitstring, b: bitstring"
)


def queries(leak):
    implies = lambda a, b, e: f"{e}({a}) ==> {e}({b})"
    once = "event" if leak else "inj-event"
    asked = [f"event(DUp({S},d)) && attacker(d)", "event(DDn(true,d)) && attacker(d)"]
    asked += [implies(ACCEPTED, PENDING, once), implies(CONFIRMED, ACCEPTED, once)]
    if leak:
        return asked + [implies(PENDING, STARTED, "event"), implies(TAKEN, GIVEN, "event")]
    asked += [implies(CONFIRMED, SENT, once), implies(PENDING, STARTED, "event")]
    asked += [implies(PENDING, STARTED, once), implies(TAKEN, GIVEN, once)]
    return asked + [
        "event(Seal(k,n,a)) && event(Seal(k,n,b)) ==> a = b",
        f"event({CONFIRMED})",
        f"event({TAKEN})",
    ]


class Side:
    """Both halves of one key source."""

    def __init__(self, source, mode, scenario, flags, several):
        self.source, self.certificate, self.scenario = source, mode == "cert", scenario
        self.flags, self.ephemeral = flags, source == "eph"
        self.tag = f"_{source}" if several else ""
        self.server = "Y" if self.ephemeral else "F" if self.certificate else "srv"

    hello, gateway, device = "(hdr,E,ct)", "(certlabel,pkX)", "(certlabel,id,pkD)"

    def proof(self):
        if self.certificate:
            return f"sign(skD,(LH,hdr,{self.gateway},E,{self.device},fr,Rc))"
        return f"mac(psk,(LB,ex,hdr,{self.gateway},E,id,fr,Rc))"

    def check(self):
        if self.certificate:
            return f"verify(pkD,(LH,hdr,{self.gateway},E,{self.device},fr,Rc),prf) = true"
        return f"prf = {self.proof()}"

    def master(self, ikm):
        registration = "none" if self.certificate else "psk"
        seen = f"h(({self.hello},(ACC,{self.server}),{self.gateway},{self.device}))"
        return f"let master = mk(ex,{registration},{seen},{ikm}) in"

    def ikm(self):
        return "xr(Rc,Rs)" if self.source == "xor" else "Rc"

    def accept_key(self, dh):
        if self.certificate:
            return f"hkey({dh},F,pkD,(LA,pkX))"
        return "k2((ex,psk),srv)" if "pskacc" in self.flags else "k2(ex,srv)"

    def signed(self):
        whom = self.device if self.certificate else "id"
        return f"(LA,{self.hello},{self.server},ct2,{self.gateway},{whom})"

    def keys(self, dh):
        yield f"  let z = {dh} in let k1 = hkey(z,E,pkX,(LH,hdr)) in let ex = hexp(z,E,pkX,(LH,hdr)) in"

    def device_side(self):
        yield f"let Dev{self.tag}(id: bitstring, skD: exponent, psk: bitstring) ="
        yield "  let pkD = exp(g,skD) in"
        yield f"  let pkX = {S} in" if "lite" in self.flags else "  in(c, pkX: G);"
        yield "  new fr: bitstring;"
        if self.scenario == "Lhedge":
            yield "  new r: bitstring; let ec = hedge(skD,psk,r) in out(c,r);"
        else:
            yield "  new ec: exponent;"
        yield f"  let E = exp(g,ec) in let hdr = (HELLO,P{self.tag},MODE,pkX) in"
        yield from self.keys("exp(pkX,ec)")
        yield "  let Rc = none in" if self.ephemeral else "  new Rc: bitstring;"
        yield f"  let prf = {self.proof()} in"
        yield "  let body = (id,fr,Rc,prf) in let ct = aenc(k1,n0,hdr,body) in"
        yield "  event DevStart(id,pkD,pkX,E); event Seal(k1,n0,body);"
        yield "  out(c,(hdr,E,ct));"
        if self.ephemeral:
            yield "  in(c,(=ACC,Y: G,ct2: bitstring));"
            yield "  let srv = g2b(Y) in " + self.master("g2b(exp(Y,ec))")
            yield "  let sid = adec(kacc(master),n0,(ACC,Y),ct2) in"
        else:
            if self.certificate:
                yield "  in(c,(=ACC,F: G,ct2: bitstring,sg: bitstring));"
                yield "  let srv = g2b(F) in"
            else:
                yield "  in(c,(=ACC,srv: bitstring,ct2: bitstring,sg: bitstring));"
            yield f"  if verify(pkX,{self.signed()},sg) = true then"
            yield f"  let (Rs: bitstring, sid: bitstring) = adec({self.accept_key('exp(F,skD)')},n0,ACC,ct2) in"
            yield "  " + self.master(self.ikm())
        yield "  event DevAccept(id,pkD,pkX,E,srv,master,sid);"
        yield "  new dU: bitstring; event DUp(pkX,dU); event DevSent(id,pkD,pkX,master,dU); event Seal(kup(master),n0,(DUP,dU));"
        yield "  out(c,(DUP,sid,aenc(kup(master),n0,(DUP,sid),dU)));"
        yield "  in(c,(=DDN,=sid,ct4: bitstring)); let dD = adec(kdn(master),n0,(DDN,sid),ct4) in"
        yield "  event DevDown(id,pkD,pkX,master,dD).\n"

    def gateway_side(self):
        yield f"let Gw{self.tag}() ="
        yield f"  let pkX = {S} in"
        yield "  in(c,(hdr: bitstring,E: G,ct: bitstring));"
        yield f"  if hdr = (HELLO,P{self.tag},MODE,pkX) then"
        yield from self.keys("exp(E,skS)")
        yield "  let (id: bitstring,fr: bitstring,Rc: bitstring,prf: bitstring) = adec(k1,n0,hdr,ct) in"
        yield "  get reg(=id,pkD,psk,hon) in"
        yield f"  if {self.check()} then"
        yield "  new sid: bitstring;"
        if self.ephemeral:
            yield "  new es: exponent; let Y = exp(g,es) in"
            yield "  let srv = g2b(Y) in " + self.master("g2b(exp(E,es))")
            yield "  event GwPending(hon,id,pkD,pkX,E,srv,master,sid); event Seal(kacc(master),n0,sid);"
            yield "  out(c,(ACC,Y,aenc(kacc(master),n0,(ACC,Y),sid)));"
        else:
            yield "  new Rs: bitstring;"
            if self.certificate:
                yield "  new f: exponent; let F = exp(g,f) in let srv = g2b(F) in"
            else:
                yield "  new srv: bitstring;"
            yield f"  let ka = {self.accept_key('exp(pkD,f)')} in"
            yield f"  let ct2 = aenc(ka,n0,ACC,(Rs,sid)) in let sg = sign(skS,{self.signed()}) in"
            yield "  " + self.master(self.ikm())
            yield "  event GwPending(hon,id,pkD,pkX,E,srv,master,sid); event Seal(ka,n0,(Rs,sid));"
            yield f"  out(c,(ACC,{self.server},ct2,sg));"
        yield "  in(c,(=DUP,=sid,ct3: bitstring)); let dU = adec(kup(master),n0,(DUP,sid),ct3) in"
        yield "  event GwConfirm(hon,id,pkD,pkX,E,srv,master,sid,dU);"
        yield "  new dD: bitstring; event DDn(hon,dD); event GwDown(hon,id,pkD,pkX,master,dD); event Seal(kdn(master),n0,(DDN,dD));"
        yield "  out(c,(DDN,sid,aenc(kdn(master),n0,(DDN,sid),dD))).\n"


def model(sources, mode, scenario, flags):
    sources, leak = sources.split(","), scenario != "S0"
    sides = [Side(source, mode, scenario, flags, len(sources) > 1) for source in sources]
    traced = "true" if "trace" in flags else "false"
    profiles = " ".join(f"const P{side.tag}: bitstring." for side in sides)
    lines = [f"(* the handshake: {','.join(sources)} {mode} {scenario} {sorted(flags)} *)"]
    if not leak:
        lines.append("set preciseActions = true.")
    lines.append(HEAD.format(trace=traced, profiles=profiles))
    lines.append(f"query {VARIABLES};\n  " + ";\n  ".join(queries(leak)) + ".")
    for side in sides:
        lines += [*side.device_side(), *side.gateway_side()]
    gateways = " | ".join(f"(!Gw{side.tag}())" for side in sides)
    devices = " | ".join(f"(!Dev{side.tag}(id,skD,psk))" for side in sides)
    given = "out(c,skS)" if scenario == "KS" else "0"
    his = "| (!(in(c,(x: bitstring,pk: G,k: bitstring)); insert reg(aid(x),pk,k,false)))"
    lines.append(f"""process
  out(c,{S});
  ( {gateways} | ({given})
  | (!(new skD: exponent; new id: bitstring; new psk: bitstring;
       insert reg(id,exp(g,skD),psk,true); out(c,(id,exp(g,skD)));
       ({devices} | (0))))
  {"" if "lite" in flags else his} )""")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    print(model(*sys.argv[1:4], set(sys.argv[4:])))
