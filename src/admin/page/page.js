// The gateway's page. Everything that comes from the gateway reaches the document as text, never as markup.
// The token is kept in this tab's session storage, and goes to this gateway alone.

const KEY = "duet-token";
const HISTORY = 120;
const SHOWN = 200;
const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
let token = sessionStorage.getItem(KEY) ?? "";
let before = null;
const history = { readings: [], handshakes: [] };

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function pairs(list, entries) {
  list.replaceChildren(...entries.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function span(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const [unit, size] = units.find(([, size]) => seconds >= size) ?? ["s", 1];
  return `${number.format(Math.floor((seconds / size) * 10) / 10)} ${unit}`;
}

function day(seconds) {
  return seconds === null || seconds === undefined ? "" : new Date(seconds * 1000).toISOString().slice(0, 10);
}

function line(id, values) {
  const most = Math.max(1, ...values);
  const points = values.map((value, i) => `${HISTORY - values.length + i + 1},${(28 - (value / most) * 26).toFixed(1)}`);
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  drawn.setAttribute("points", points.join(" "));
  at(id).replaceChildren(drawn);
}

function rate(name, value) {
  const values = history[name];
  values.push(value);
  if (values.length > HISTORY) values.shift();
  at(`${name}-rate`).textContent = number.format(value);
  line(`${name}-line`, values);
}

function show(now) {
  const { status, activity } = now;
  at("login").hidden = true;
  at("live").hidden = false;
  at("leave").hidden = !token;
  const healthy = status.faults.length === 0 && status.phase === "running";
  at("phase").textContent = healthy ? "well" : status.faults.length > 0 ? "faults" : status.phase;
  at("phase").className = `badge ${healthy ? "good" : "bad"}`;
  at("where").textContent = status.listen;
  at("faults").hidden = status.faults.length === 0;
  at("fault-list").replaceChildren(...now.faults.map(({ fault, advice }) => element("li", `${fault}: ${advice}`)));
  pairs(at("fleet"), [
    ["Devices", number.format(status.devices)],
    ["Sessions", number.format(status.sessions)],
    ["Waiting for their first record", number.format(status.pending)],
    ["Running for", span(status.uptime_s)],
    ["Shards", `${status.shards}, ${status.driver === "io_uring" ? "io_uring" : "epoll"}`],
  ]);
  const seconds = before ? (now.time_ms - before.time_ms) / 1000 : 0;
  const speed = (of) => (seconds > 0 ? Math.max(0, of(now) - of(before)) / seconds : 0);
  if (seconds > 0) {
    rate("readings", speed(({ activity }) => activity.readings));
    rate("handshakes", speed(({ activity }) => activity.accepts));
  }
  pairs(at("readings"), [
    ["Taken", number.format(activity.readings)],
    ["Inside HELLO", number.format(activity.readings_early)],
    ["Came again", number.format(activity.readings_known)],
  ]);
  pairs(at("handshakes"), [
    ["ACCEPTs", number.format(activity.accepts)],
    ["Confirmed", number.format(activity.confirmed)],
    ["Challenges", number.format(activity.challenges)],
    ["RESETs", number.format(activity.resets)],
  ]);
  at("no-upstreams").hidden = status.upstreams.length > 0;
  at("upstreams").replaceChildren(...status.upstreams.map(upstream));
  const drops = activity.drops.filter(({ count }) => count > 0).sort((a, b) => b.count - a.count);
  at("no-drops").hidden = drops.length > 0;
  at("drops").replaceChildren(...drops.map(({ reason, count, advice }) => {
    const row = document.createElement("tr");
    row.append(
      element("td", reason, "name"),
      element("td", number.format(speed(({ activity }) => dropped(activity, reason))), "number"),
      element("td", number.format(count), "number"),
      element("td", advice, "help"),
    );
    return row;
  }));
  before = now;
}

function dropped(activity, reason) {
  return activity.drops.find((drop) => drop.reason === reason)?.count ?? 0;
}

function upstream(one) {
  const row = document.createElement("tr");
  const name = element("td", `${one.name} (${one.kind})`, "name");
  if (one.problem) name.append(element("div", one.problem, "wrong"));
  row.append(
    name,
    element("td", one.backlog > 0 ? span(one.oldest_ms / 1000) : "–", one.late ? "number wrong" : "number"),
    ...[one.backlog, one.delivered, one.parked, one.lost].map((count) => element("td", number.format(count), "number")),
  );
  return row;
}

function login(said) {
  sessionStorage.removeItem(KEY);
  token = "";
  at("login-said").textContent = said;
  at("login").hidden = false;
  at("live").hidden = true;
  at("leave").hidden = true;
  at("phase").textContent = "token needed";
  at("phase").className = "badge";
  at("token").focus();
}

// Hands on each line of an answer as it comes; `each` returns false when it has had enough.
async function lines(answer, each) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part !== "" && each(part) === false) {
        await reader.cancel();
        return;
      }
    }
  }
}

let watching = null;

// Follows the gateway until it cannot be reached or wants a token.
async function watch() {
  watching?.abort();
  const mine = (watching = new AbortController());
  let first = true;
  while (!mine.signal.aborted) {
    try {
      const answer = await fetch("/v1/live", { headers: headers(), cache: "no-store", signal: mine.signal });
      if (answer.status === 401) return login(token ? "This token is not valid here." : "");
      if (!answer.ok) throw new Error((await answer.json()).error);
      await lines(answer, (text) => {
        if (!text.startsWith("data: ")) return true;
        show(JSON.parse(text.slice(6)));
        if (first) search();
        first = false;
        return true;
      });
    } catch (error) {
      if (mine.signal.aborted) return;
    }
    at("phase").textContent = "no connection";
    at("phase").className = "badge bad";
    before = null;
    await new Promise((later) => setTimeout(later, 2000));
  }
}

let searching = null;

// Lists devices whose names begin with what was typed, for the list is in the order of names; or those with a tag
// (tag:pumps) or of a group (group:north).
async function search() {
  searching?.abort();
  const mine = (searching = new AbortController());
  const wanted = at("search").value;
  const options = { headers: headers(), cache: "no-store", signal: mine.signal };
  const rows = [];
  let more = false;
  const label = /^(tag|group):(.+)$/.exec(wanted);
  const add = (device) => {
    if (!label && !device.name.startsWith(wanted)) return false;
    if (rows.length === SHOWN) {
      more = true;
      return false;
    }
    rows.push(device);
    return true;
  };
  try {
    let from = "/v1/devices";
    if (label) {
      from += `?${label[1]}=${encodeURIComponent(label[2].trim())}`;
    } else if (wanted !== "") {
      const exact = await fetch(`/v1/devices/${encodeURIComponent(wanted)}`, options);
      if (exact.ok) add(await exact.json());
      from += `?after=${encodeURIComponent(wanted)}`;
    }
    const answer = await fetch(from, options);
    if (!answer.ok) throw new Error((await answer.json()).error);
    await lines(answer, (text) => add(JSON.parse(text)));
    at("devices-said").textContent = more ? `The first ${SHOWN} of more.` : `${rows.length} found.`;
  } catch (error) {
    if (mine.signal.aborted) return;
    at("devices-said").textContent = error.message;
  }
  at("devices").replaceChildren(...rows.map(device));
}

function time(milliseconds) {
  return new Date(milliseconds).toISOString().replace("T", " ").slice(0, 19);
}

// What a device does, in words, and whether that is wrong. A refusal counts until the device has been here again.
function state({ revoked_s: revoked, not_after_s, expires_s, presence }) {
  if (revoked !== null && revoked !== undefined) return [`revoked ${day(revoked)}`, "wrong"];
  const end = earliest(not_after_s, expires_s);
  if (end !== null && end * 1000 <= Date.now()) return [`expired ${day(end)}`, "wrong"];
  if (!presence) return ["registered", ""];
  if (presence.online) return [`online since ${time(presence.since_ms)}`, ""];
  const refused = presence.refusals?.[0];
  const left = presence.left;
  if (refused && !(left?.at_ms > refused.at_ms)) return [`refused ${time(refused.at_ms)}: ${refused.reason}`, "wrong"];
  return left ? [`offline since ${time(left.at_ms)}: ${left.reason}`, ""] : ["registered", ""];
}

// The first of two ends, of which there may be none.
function earliest(...ends) {
  const known = ends.filter((end) => end !== null && end !== undefined);
  return known.length ? Math.min(...known) : null;
}

function device(one) {
  const row = document.createElement("tr");
  const [word, kind] = state(one);
  row.append(
    element("td", one.name, "name"),
    element("td", word, kind),
    element("td", one.mode),
    element("td", one.id),
    element("td", day(earliest(one.not_after_s, one.expires_s)), "number"),
  );
  return row;
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  sessionStorage.setItem(KEY, token);
  watch();
});
at("leave").addEventListener("click", () => {
  watching?.abort();
  login("");
});
at("search-form").addEventListener("submit", (event) => event.preventDefault());
let typed = 0;
at("search").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(search, 200);
});
watch();
