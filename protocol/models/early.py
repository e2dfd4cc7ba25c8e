#!/usr/bin/env python3
"""Writes one ProVerif model of the handshake whose HELLO carries a reading.

    early.py SOURCE MODE SCENARIO [FLAG ...] > model.pv

SOURCE    eph, xor, cli         the key source
MODE      cert, psk             a certificate, or a registered id with its key
SCENARIO  what the attacker gets besides the network:
          S0                    nothing
          FS, FD, FSD           the gateway's key, the device's, both: after the protocol has run
          KS, KD                the same from the start
          Lec                   the ephemeral scalars of HELLOs
          Lrng                  the device's random values; its scalars are hedged with its secret
          Lsep, Lsig            the same where the secret cannot be read: hedged with a key beside it,
                                or with a signature over a fixed label
          Lsep_d, Lrng_d        as those, and the device's secret later
          Lboth                 as Lsep, and the key beside it, too
FLAG      mutants, each of which must break a query:
          nom                   the proof does not cover the reading
          nopf                  stored before the proof is checked
          clearbit              "stored" stands outside ACCEPT's seal
          nomark                a node stores the same counter of a device more than once
          byfresh               a reading's name is device and counter
          early0                "stored" is said without storing
          siglabel              the signature over the label is sent, too
          and what to ask:
          lite                  the attacker registers no devices of his own
          once                  E3 alone, with what the mark gives as a restriction
          precise               Q7 (no key and nonce for two texts)
          trace                 attack traces
          only=E1,E2            these queries only

The attacker chooses the counter `fr` of every HELLO, as if every device forgot its own, and the name of
the node; any number of nodes hold the certificate.

Queries: E1 the reading is secret. E2 stored: that device sent it in that HELLO. E3 a node stores a HELLO
once. E4 told "stored": the gateway said so, once. E5 ... and stored it. E6 one name, one reading, over all
nodes. Q1, Q2 records up and down are secret. Q3 the device accepts: the gateway answered. Q4 the gateway
confirms: the device accepted. Q6 commands are the gateway's. Q7 as above. reach must fail: it can happen.
"""
import sys

SIGNATURE = """set attacker = active.
{precise}set reconstructTrace = {trace}.
free c: channel.
type G. type exponent.
const g: G.
fun exp(G, exponent): G.
equation forall x: exponent, y: exponent; exp(exp(g,x),y) = exp(exp(g,y),x).
fun sign(exponent, bitstring): bitstring.
reduc forall k: exponent, m: bitstring; verify(exp(g,k), m, sign(k,m)) = true.
fun aenc(bitstring, bitstring, bitstring, bitstring): bitstring.
reduc forall k: bitstring, n: bitstring, a: bitstring, m: bitstring; adec(k,n,a,aenc(k,n,a,m)) = m.
fun hkey(G,G,G,bitstring): bitstring.  (* HPKE: key from x(dh), enc, recipient, info *)
fun hexp(G,G,G,bitstring): bitstring.  (* HPKE: exporter *)
fun mk(bitstring,bitstring,bitstring,bitstring): bitstring.  (* master *)
fun k2(bitstring,bitstring): bitstring.  (* ACCEPT's key without a certificate *)
fun kacc(bitstring): bitstring. fun kup(bitstring): bitstring. fun kdn(bitstring): bitstring.
fun h(bitstring): bitstring. fun mac(bitstring,bitstring): bitstring.
fun hedge(bitstring,bitstring,bitstring): exponent.
fun xr(bitstring,bitstring): bitstring.
reduc forall a: bitstring, b: bitstring; xrl(xr(a,b),a) = b.
reduc forall a: bitstring, b: bitstring; xrr(xr(a,b),b) = a.
fun g2b(G): bitstring [typeConverter]. fun e2b(exponent): bitstring [typeConverter].
fun aid(bitstring): bitstring.  (* names that the attacker may register *)
const HELLO, ACC, DUP, DDN, PROF, n0, none, LH, LA, LB, LHEDGE, certlabel, YES, NO: bitstring.
table reg(bitstring, G, bitstring, bool).  (* id, public key, registration key, honest *)
free skS: exponent [private].
event DevEarly(bitstring,G,G,G,bitstring,bitstring).
event DEarly(G,bitstring).
event Store(bool,bitstring,bitstring,G,G,bitstring,G,bitstring,bitstring).
event Once(bitstring,bitstring,bitstring,bitstring).
event DevStored(bitstring,G,G,G,bitstring,bitstring).
event DevAccept(bitstring,G,G,G,bitstring,bitstring,bitstring).
event GwSaid(bool,bitstring,bitstring,G,G,G,bitstring,bitstring).
event GwPending(bool,bitstring,G,G,G,bitstring,bitstring,bitstring).
event GwConfirm(bool,bitstring,G,G,G,bitstring,bitstring,bitstring,bitstring).
event DUp(G,bitstring). event DDn(bool,bitstring).
event GwDown(bool,bitstring,G,G,bitstring,bitstring). event DevDown(bitstring,G,G,bitstring,bitstring).
event Seal(bitstring,bitstring,bitstring).
"""

MARK = """(* what the mark gives, which the explorer checks: a node stores one counter of a device once *)
restriction nd: bitstring, i: bitstring, f: bitstring, s: bitstring, t: bitstring; event(Once(nd,i,f,s)) && event(Once(nd,i,f,t)) ==> s = t.
"""

VARIABLES = (
    "pd2: G, d: bitstring, i: bitstring, pd: G, E: G, E2: G, s: bitstring, m: bitstring, x: bitstring, "
    "k: bitstring, n: bitstring, a: bitstring, b: bitstring, r: bitstring, r2: bitstring, f: bitstring, "
    "f2: bitstring, nd: bitstring, nd2: bitstring"
)
AFTERWARDS = ("FS", "FD", "FSD", "Lsep_d", "Lrng_d")


class Model:
    def __init__(self, source, mode, scenario, flags):
        self.source, self.scenario, self.flags = source, scenario, set(flags)
        self.ephemeral, self.certificate = source == "eph", mode == "cert"
        self.title = f"{source} {mode} {scenario} {sorted(self.flags)}"

    def has(self, flag):
        return flag in self.flags

    # ---- what is asked

    def queries(self):
        S = "exp(g,skS)"
        same_name = ("E", "f2", "E")
        if self.has("byfresh"):
            same_name = ("E", "f", "E2")
        one, fresh, two = same_name
        asked = [
            ("E1", f"event(DEarly({S},r)) && attacker(r)"),
            ("E2", f"event(Store(true,nd,i,pd,{S},f,E,r,s)) ==> event(DevEarly(i,pd,{S},E,f,r))"),
        ]
        if self.scenario not in AFTERWARDS:
            asked += [
                ("E3", f"event(Store(true,nd,i,pd,{S},f,E,r,s)) && event(Store(true,nd,i,pd2,{S},f2,E,r2,x)) ==> s = x"),
                ("E4", f"inj-event(DevStored(i,pd,{S},E,m,r)) ==> inj-event(GwSaid(true,nd,i,pd,{S},E,m,r))"),
                ("E5", f"event(DevStored(i,pd,{S},E,m,r)) ==> event(Store(true,nd,i,pd,{S},f,E,r,s))"),
                ("E6", f"event(Store(true,nd,i,pd,{S},f,{one},r,s)) && event(Store(true,nd2,i,pd,{S},{fresh},{two},r2,x)) ==> r = r2"),
                ("Q3", f"inj-event(DevAccept(i,pd,{S},E,s,m,x)) ==> inj-event(GwPending(true,i,pd,{S},E,s,m,x))"),
                ("Q4", f"inj-event(GwConfirm(true,i,pd,{S},E,s,m,x,d)) ==> inj-event(DevAccept(i,pd,{S},E,s,m,x))"),
                ("Q6", f"inj-event(DevDown(i,pd,{S},m,d)) ==> inj-event(GwDown(true,i,pd,{S},m,d))"),
                ("Q7", "event(Seal(k,n,a)) && event(Seal(k,n,b)) ==> a = b"),
            ]
        asked += [
            ("Q1", f"event(DUp({S},d)) && attacker(d)"),
            ("Q2", "event(DDn(true,d)) && attacker(d)"),
        ]
        if self.scenario == "S0":
            asked.append(("reach", f"event(DevStored(i,pd,{S},E,m,r))"))
        # E3 needs the restriction, which the others would rest on, too; Q7 needs precise actions.
        asked = [q for q in asked if (q[0] == "E3") == self.has("once")]
        if not self.has("precise"):
            asked = [q for q in asked if q[0] != "Q7"]
        for flag in self.flags:
            if flag.startswith("only="):
                asked = [q for q in asked if q[0] in flag[5:].split(",")]
        return asked

    # ---- the terms of the key schedule

    gateway = "(certlabel,pkX)"
    hello = "(hdr,E,ct)"
    device = "(certlabel,id,pkD)"

    def signed(self):
        reading = "none" if self.has("nom") else "rd"
        return f"(LH,hdr,{self.gateway},E,{self.device},fr,S,{reading})"

    def proof(self):
        if self.certificate:
            return f"sign(skD,{self.signed()})"
        return f"mac(psk,(LB,ex,{self.signed()}))"

    def check(self):
        if self.certificate:
            return f"verify(pkD,{self.signed()},prf) = true"
        return f"prf = mac(psk,(LB,ex,{self.signed()}))"

    def transcript(self):
        return f"h(({self.hello},(ACC,srv),{self.gateway},{self.device}))"

    def master(self, ikm):
        registration = "none" if self.certificate else "psk"
        return f"mk(ex,{registration},{self.transcript()},{ikm})"

    def ikm(self):
        return "xr(S,Rs)" if self.source == "xor" else "S"

    def accept_key(self, dh, point):
        if self.certificate:
            return f"hkey({dh},{point},pkD,(LA,h({self.hello}),{self.gateway},{self.device}))"
        return f"k2((ex,psk),{self.transcript()})"

    # ---- the two sides

    def ephemeral_scalar(self):
        if not self.scenario.startswith(("Lrng", "Lsep", "Lsig", "Lboth")):
            return "  new ec: exponent;" + (" out(c,ec);" if self.scenario == "Lec" else "")
        secret = {
            "Lrng": "(e2b(skD),psk)",
            "Lsep": "sep",
            "Lboth": "sep",
            "Lsig": "sign(skD,LHEDGE)",
        }[self.scenario.split("_")[0]]
        return f"  new rnd: bitstring; out(c,(rnd,h(rd))); let ec = hedge({secret},rnd,(pkX,fr,h(rd))) in"

    def device_side(self):
        yield "\nlet Dev(id: bitstring, skD: exponent, psk: bitstring, sep: bitstring) ="
        yield "  let pkD = exp(g,skD) in in(c, (pkX: G, fr: bitstring)); new rd: bitstring;"
        yield self.ephemeral_scalar()
        if self.has("siglabel"):
            yield "  out(c,sign(skD,LHEDGE));"
        yield "  let E = exp(g,ec) in let hdr = (HELLO,PROF,pkX) in let z = exp(pkX,ec) in"
        yield "  let k1 = hkey(z,E,pkX,(LH,hdr)) in let ex = hexp(z,E,pkX,(LH,hdr)) in"
        yield "  let S = none in" if self.ephemeral else "  new Rc: bitstring; let S = Rc in"
        yield f"  let body = (id,fr,S,{self.proof()},rd) in let ct = aenc(k1,n0,hdr,body) in"
        yield "  event DevEarly(id,pkD,pkX,E,fr,rd); event DEarly(pkX,rd); event Seal(k1,n0,body);"
        yield "  out(c,(hdr,E,ct));"
        if self.ephemeral:
            master = self.master("g2b(exp(Y,ec))")
            yield f"  in(c,(=ACC,Y: G,ct2: bitstring,cb: bitstring)); let srv = g2b(Y) in let master = {master} in"
            yield "  let (sid: bitstring, sb: bitstring) = adec(kacc(master),n0,(ACC,srv),ct2) in"
        else:
            if self.certificate:
                yield "  in(c,(=ACC,F: G,ct2: bitstring,cb: bitstring)); let srv = g2b(F) in"
            else:
                yield "  in(c,(=ACC,srv: bitstring,ct2: bitstring,cb: bitstring));"
            key = self.accept_key("exp(F,skD)", "F")
            yield f"  let (Rs: bitstring,sid: bitstring,sb: bitstring,sg: bitstring) = adec({key},n0,(ACC,srv),ct2) in"
            yield f"  if verify(pkX,(LA,{self.transcript()},Rs,sid,sb),sg) = true then let master = {self.master(self.ikm())} in"
        told = "cb" if self.has("clearbit") else "sb"
        yield "  event DevAccept(id,pkD,pkX,E,srv,master,sid);"
        yield f"  if {told} = YES then (event DevStored(id,pkD,pkX,E,master,rd)) else"
        yield "  new dU: bitstring; event DUp(pkX,dU); event Seal(kup(master),n0,(DUP,dU)); out(c,(DUP,sid,aenc(kup(master),n0,(DUP,sid),dU)));"
        yield "  in(c,(=DDN,=sid,ct4: bitstring)); let dD = adec(kdn(master),n0,(DDN,sid),ct4) in event DevDown(id,pkD,pkX,master,dD)."

    def gateway_side(self):
        store = "new stamp: bitstring; event Once(node,id,fr,stamp); event Store(hon,node,id,pkD,pkX,fr,E,rd,stamp);"
        yield "\nlet Gw() ="
        yield "  in(c, node: bitstring); let pkX = exp(g,skS) in in(c,(hdr: bitstring,E: G,ct: bitstring)); if hdr = (HELLO,PROF,pkX) then"
        yield "  let z = exp(E,skS) in let k1 = hkey(z,E,pkX,(LH,hdr)) in let ex = hexp(z,E,pkX,(LH,hdr)) in"
        yield "  let (id: bitstring,fr: bitstring,S: bitstring,prf: bitstring,rd: bitstring) = adec(k1,n0,hdr,ct) in get reg(=id,pkD,psk,hon) in"
        if self.has("nopf"):
            yield f"  {store}"
        yield f"  if {self.check()} then in(c, st: bitstring) [precise]; new sid: bitstring;"
        said = "NO" if self.has("clearbit") else "st"
        if self.ephemeral:
            master = self.master("g2b(exp(E,es))")
            yield f"  new es: exponent; let Y = exp(g,es) in let srv = g2b(Y) in let master = {master} in"
            key, text, server = "kacc(master)", f"(sid,{said})", "Y"
        else:
            fresh = " new f: exponent; let F = exp(g,f) in let srv = g2b(F) in"
            yield "  new Rs: bitstring;" + (fresh if self.certificate else " new srv: bitstring;")
            yield f"  let master = {self.master(self.ikm())} in let sg = sign(skS,(LA,{self.transcript()},Rs,sid,{said})) in"
            key = self.accept_key("exp(pkD,f)", "F")
            text, server = f"(Rs,sid,{said},sg)", "F" if self.certificate else "srv"
        yield f"  let ka = {key} in event GwPending(hon,id,pkD,pkX,E,srv,master,sid); event Seal(ka,n0,{text});"
        message = f"(ACC,{server},aenc(ka,n0,(ACC,srv),{text}),st)"
        stores = "" if self.has("nopf") or self.has("early0") else store
        yield f"  (if st = YES then ({stores} event GwSaid(hon,node,id,pkD,pkX,E,master,rd); out(c,{message})) else out(c,{message}))"
        yield "  | (in(c,(=DUP,=sid,ct3: bitstring)); let dU = adec(kup(master),n0,(DUP,sid),ct3) in event GwConfirm(hon,id,pkD,pkX,E,srv,master,sid,dU);"
        yield "  new dD: bitstring; event DDn(hon,dD); event GwDown(hon,id,pkD,pkX,master,dD); event Seal(kdn(master),n0,(DDN,dD)); out(c,(DDN,sid,aenc(kdn(master),n0,(DDN,sid),dD))))."

    def main(self):
        gateway = {"FS": "phase 1; out(c,skS)", "FSD": "phase 1; out(c,skS)", "KS": "out(c,skS)"}
        later, secrets = "phase 1; out(c,(skD,psk))", "out(c,(skD,psk))"
        device = {
            "FD": later, "FSD": later, "KD": secrets, "Lsep_d": later, "Lrng_d": later, "Lboth": "out(c,sep)",
        }
        his = "| (!(in(c,(x: bitstring,pk: G,k: bitstring)); insert reg(aid(x),pk,k,false)))"
        yield f"""
process
  out(c,exp(g,skS));
  ( (!Gw()) | ({gateway.get(self.scenario, "0")})
  | (!(new skD: exponent; new id: bitstring; new psk: bitstring; new sep: bitstring;
       insert reg(id,exp(g,skD),psk,true); out(c,(id,exp(g,skD)));
       ((!Dev(id,skD,psk,sep)) | ({device.get(self.scenario, "0")}))))
  {"" if self.has("lite") else his} )"""

    def text(self):
        precise = "set preciseActions = true.\n" if self.has("once") or self.has("precise") else ""
        out = [f"(* a handshake with a reading inside HELLO: {self.title} *)"]
        out.append(SIGNATURE.format(precise=precise, trace="true" if self.has("trace") else "false"))
        if self.has("once") and not self.has("nomark"):
            out.append(MARK)
        asked = self.queries()
        out.append("(* queries: %s *)" % ", ".join(name for name, _ in asked))
        out.append(f"query {VARIABLES};\n  " + ";\n  ".join(query for _, query in asked) + ".")
        out += [*self.device_side(), *self.gateway_side(), *self.main()]
        return "\n".join(out)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    print(Model(*sys.argv[1:4], sys.argv[4:]).text())
