// The dashboard: reads the proxy's documents every few seconds while it is visible, and draws them.
// Data becomes text by textContent alone. Nodes are kept between two readings, so that focus and selection stay.

const POLL_MS = 2000, CHANGING_MS = 1000, DAEMON_MS = 5000, MODELS_MS = 10000, MOST_PAUSE_MS = 30000, ANSWER_MS = 15000, SILENT_MS = 60000, LOGGED = 50;
const state = {key: "", models: [], status: null, plan: null, live: [], daemon: null, daemonWhy: "", found: new Map()};
const byId = (id) => document.getElementById(id);

// ---- Nodes

function node(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function say(target, words) {
  if (target.textContent !== words) target.textContent = words;
}

function set(target, name, value) {
  if (target.getAttribute(name) !== value) target.setAttribute(name, value);
}

function show(target, visible) {
  if (target.hidden === visible) target.hidden = !visible;
}

// One child for each item, in this order; a child is made once for its key, and moved only if its place has changed.
function keep(parent, items, keyOf, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child])), focused = document.activeElement;
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    if (child) known.delete(key);
    else {
      child = make(item);
      child.dataset.key = key;
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, item);
  }
  for (const left of known.values()) left.remove();
  if (focused !== document.activeElement && parent.contains(focused)) focused.focus({preventScroll: true});
}

function list(parent, texts) {
  keep(parent, texts.map((text, number) => ({text, number})), (i) => String(i.number), () => node("li"), (li, i) => say(li, i.text));
  show(parent, texts.length > 0);
}

// Each cell is {text, kind, chart}. The roles are said, because the narrow layout takes them away.
function table(parent, caption, heads, rows) {
  let found = parent.querySelector("table");
  if (!found) {
    found = node("table", {role: "table"}, node("caption", {text: caption}),
      node("thead", {role: "rowgroup"}, node("tr", {role: "row"}, ...heads.map((text) => node("th", {role: "columnheader", scope: "col", text})))),
      node("tbody", {role: "rowgroup"}));
    parent.append(found);
  }
  const makeRow = () => node("tr", {role: "row"}, ...heads.map((name, column) => column === 0
    ? node("th", {role: "rowheader", scope: "row"})
    : node("td", {role: "cell", "data-name": name}, node("div"))));
  keep(found.tBodies[0], rows, (row) => row.key, makeRow, (tr, row) => {
    tr.className = row.isNew ? "new" : "";
    row.cells.forEach((cell, column) => {
      const target = column === 0 ? tr.children[0] : tr.children[column].firstElementChild;
      if (target.dataset.said === cell.text + (cell.chart ? cell.chart.key : "")) return;
      target.dataset.said = cell.text + (cell.chart ? cell.chart.key : "");
      target.className = cell.kind || "";
      target.replaceChildren(cell.text, ...(cell.chart ? [cell.chart.draw()] : []));
    });
  });
  show(parent, rows.length > 0);
}

function svg(tag, properties) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
  return made;
}

// The speed of the last answers as a line, with the proof's as a dashed one. The numbers beside it say the same.
function spark(values, proof) {
  if (values.length < 2) return null;
  return {key: `${values.join(" ")}|${proof}`, draw: () => {
    const most = Math.max(...values, proof || 0) * 1.05, y = (value) => (20 - 20 * value / most).toFixed(1);
    const drawn = svg("svg", {class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true"});
    const points = values.map((value, number) => `${(100 * number / (values.length - 1)).toFixed(1)},${y(value)}`).join(" ");
    if (proof) drawn.append(svg("line", {class: "proof", x1: 0, x2: 100, y1: y(proof), y2: y(proof), stroke: "currentColor", "stroke-dasharray": "3 3"}));
    drawn.append(svg("polyline", {points, fill: "none", stroke: "currentColor", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke"}));
    return drawn;
  }};
}

// ---- Words

const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const bytes = (count) => count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${Math.round(count / 1e6)} MB`;
const percent = (share) => share === null || share === undefined ? "–" : `${Math.round(100 * share)} %`;
const speed = (tps) => tps === null || tps === undefined ? "–" : `${tps.toFixed(1)} tok/s`;
const times = (ratio) => `×${ratio.toFixed(2)}`;

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}

function clock(unixSeconds) {
  return new Date(1000 * unixSeconds).toLocaleTimeString();
}

// As `Drafting.label` says it.
function label(drafting) {
  return (drafting.parts || [drafting]).map((part) => [part.mode, ...Object.entries(part)
    .filter(([name, value]) => !["mode", "parts"].includes(name) && !(name === "n_min" && value === 0))
    .map(([name, value]) => name === "draft" ? String(value).split("/").pop().replace(/\.gguf$/, "") : `${name}=${value}`)].join(" ")).join(" + ");
}

const isOff = (drafting) => drafting.mode === "off";
const sameDrafting = (one, other) => label(one) === label(other) && one.draft === other.draft;

// ---- Asking

class Unauthorized extends Error {}

async function ask(path, options = {}) {
  const headers = {...options.headers, ...(state.key ? {Authorization: `Bearer ${state.key}`} : {})};
  const answer = await fetch(path, {cache: "no-store", credentials: "omit", ...options, headers});
  if (answer.status === 401) throw new Unauthorized();
  return answer;
}

async function read(path) {
  const answer = await ask(path, {signal: AbortSignal.timeout(ANSWER_MS)});
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function act(action, body) {
  const answer = await ask(`v1/${action}`, {method: "POST", body: JSON.stringify(body), headers: {"Content-Type": "application/json"}});
  const told = await answer.json();
  return answer.ok ? {ok: true, words: told.said} : {ok: false, words: told.error ? told.error.message : String(answer.status)};
}

// ---- What has changed

let unsaid = [];

function happened(words, {announced = true} = {}) {
  const log = byId("log");
  log.prepend(node("li", {}, node("time", {text: new Date().toLocaleTimeString()}), ` ${words}`));
  while (log.children.length > LOGGED) log.lastElementChild.remove();
  show(byId("log-note"), false);
  if (announced) unsaid.push(words);
}

// Several changes at once are one announcement; a screen reader would read only the last of them.
function announce() {
  if (unsaid.length) say(byId("announcement"), unsaid.splice(0).join(" "));
}

function compareServers(before, now) {
  const old = new Map(before.map((server) => [server.number, server]));
  for (const server of now) {
    const earlier = old.get(server.number), name = `${server.model} with ${label(server.drafting)}`;
    old.delete(server.number);
    if (!earlier) happened(`${name}: a server is ${server.state}.`);
    else if (earlier.state !== server.state) happened(`${name}: the server is ${server.state}.`);
  }
  for (const server of old.values()) happened(`${server.model} with ${label(server.drafting)}: the server has ended.`);
}

function compareFailures(before, now) {
  const old = new Map(before.map((row) => [row.model + label(row.drafting), row]));
  for (const row of now) {
    const earlier = old.get(row.model + label(row.drafting));
    for (const [cause, words] of [["died", "died"], ["killed", "was killed"], ["did_not_start", "did not start"]]) {
      if (row[cause] > (earlier ? earlier[cause] : 0)) happened(`${row.model} with ${label(row.drafting)}: a server ${words}.`);
    }
  }
}

// ---- Drawing

function drawNow() {
  const {status} = state, figures = [
    ["Being answered", many(status.busy.leases, "request")],
    ["Waiting", `${status.queue.waiting} of at most ${status.queue.limit}`],
    ["Longest wait", status.queue.waiting ? duration(status.queue.oldest_s) : "–"],
    ["Memory of servers", `${bytes(status.memory.launches_bytes)} of ${bytes(status.memory.limit_bytes)}`],
    ["Requests so far", String(status.busy.requests)],
    ["Aim of drafting", status.aim === "energy" ? "less energy" : "speed"],
    ["Last request", status.busy.last_request_s_ago === null ? "none yet" : `${duration(status.busy.last_request_s_ago)} ago`],
    ["Proxy", `autospec ${status.proxy.version}, up for ${duration(status.proxy.uptime_s)}`],
  ];
  keep(byId("now"), figures, (f) => f[0], (f) => node("div", {}, node("dt", {text: f[0]}), node("dd")), (div, f) => say(div.lastElementChild, f[1]));
}

function makeModel(model) {
  const name = model.id;
  const pressed = async (button, action, body) => {
    const said = button.closest("li").querySelector(".said");
    button.disabled = true;
    say(said, "…");
    try {
      const done = await act(action, body);
      say(said, done.words);
      said.className = done.ok ? "said small" : "said small bad";
    } catch (error) {
      say(said, error instanceof Unauthorized ? "The key is not accepted." : "The proxy does not answer.");
      if (error instanceof Unauthorized) askForKey();
    }
    button.disabled = false;
    button.focus();
    poll.soon();
  };
  const toggle = node("button", {type: "button", role: "switch", class: "switch", "aria-label": `Drafting: ${name}`, text: "Drafting", onclick: () =>
    pressed(toggle, "drafting", {model: name, drafting: toggle.getAttribute("aria-checked") === "true" ? "off" : "recommended"})});
  const tune = node("button", {type: "button", class: "tune", "aria-label": `Tune now: ${name}`, text: "Tune now", onclick: () => pressed(tune, "tune", {model: name})});
  const unload = node("button", {type: "button", class: "unload", "aria-label": `Unload: ${name}`, text: "Unload", onclick: () => pressed(unload, "unload", {model: name})});
  return node("li", {}, node("h3", {text: name}), node("p", {class: "about quiet small"}), node("ul", {class: "servers"}), node("p", {class: "why small"}),
    node("ul", {class: "notes small"}), node("div", {class: "buttons"}, toggle, tune, unload), node("p", {class: "said small", role: "status"}));
}

function updateModel(li, model) {
  const name = model.id, {status, plan} = state, part = plan.models.find((m) => m.model === name);
  const servers = status.launches.filter((server) => server.model === name);
  const off = status.drafting_off[name];
  say(li.querySelector(".about"), [model.autospec.backend, bytes(model.autospec.size_bytes), ...(servers.length ? [] : ["not loaded"])].join(", "));
  keep(li.querySelector(".servers"), servers, (s) => String(s.number), () => node("li", {}, node("span", {class: "label"}), " ", node("strong", {class: "state"}), node("span", {class: "more quiet small"})), (item, s) => {
    say(item.querySelector(".label"), label(s.drafting));
    const shown = item.querySelector(".state");
    say(shown, s.state);
    shown.className = `state ${s.state === "ready" ? "good" : s.state === "failed" ? "bad" : "wait"}`;
    say(item.querySelector(".more"), ` ${s.leases} now, ${s.served} so far, ${bytes(s.own_bytes + s.shared_bytes)}`
      + (s.launch_ms ? `, started in ${duration(s.launch_ms / 1000)}` : "") + (s.error ? `: ${s.error}` : ""));
  });
  show(li.querySelector(".servers"), servers.length > 0);
  say(li.querySelector(".why"), part ? `Why: ${part.reason}` : "");
  const setbacks = status.setbacks.filter((s) => s.model === name).map((s) => `${label(s.drafting)} failed ${many(s.times, "time")} (${s.error})`
    + (s.given_up ? "; it is not tried again." : s.again_in_s > 0 ? `; it may start again in ${duration(s.again_in_s)}.` : "."));
  const switched = off && !(part && part.notes.length) ? [`Drafting was switched off for this model by hand on ${off}.`] : [];
  list(li.querySelector(".notes"), [...(part ? part.notes : []), ...switched, ...setbacks]);
  const toggle = li.querySelector(".switch");
  set(toggle, "aria-checked", off ? "false" : "true");
  show(li.querySelector(".unload"), servers.some((s) => ["ready", "starting"].includes(s.state)));
}

function drawModels() {
  const rank = (m) => state.status.launches.some((s) => s.model === m.id) ? 0 : 1;
  const sorted = [...state.models].sort((a, b) => rank(a) - rank(b));
  keep(byId("models"), sorted, (m) => m.id, makeModel, updateModel);
  const missing = state.status.not_served;
  say(byId("models-note"), [sorted.length ? "" : "No model was found. `autospec models` shows where autospec looks.", ...missing].join(" ").trim());
  show(byId("models-note"), !sorted.length || missing.length > 0);
}

function liveOf(model, kind, drafting) {
  const rows = state.live.filter((row) => row.model === model && row.prompt_type === kind);
  return rows.find((row) => drafting && sameDrafting(row.drafting, drafting)) || rows[0];
}

function against(value, proof, words) {
  if (value === null || value === undefined) return {text: "–"};
  if (!proof) return {text: `${words(value)}, no proof`};
  const short = value < 0.95 * proof;
  return {text: `${words(value)}, ${words(proof)} in the proof${short ? ": lower" : ""}`, kind: short ? "wait" : ""};
}

// The reasons that a plan gives for no drafting (`WhyOff` in autospec/serving/dispatch.py).
const WHY_OFF = {
  "not-tuned": "nothing was measured for this model", "type-not-measured": "this prompt type was not measured",
  "disable": "it is not faster by more than the threshold", "undecided": "no gain is proven", "status": "the setting serve_statuses leaves out the status of its recommendation",
  "draft-missing": "the draft model's file is missing", "by-hand": "switched off by hand",
  "failed-launch": "its server does not start or keeps dying", "plan": "the gain for this traffic, or the memory, is too small for its server",
};

function requestRow(model, kind, count, total) {
  const part = state.plan.models.find((m) => m.model === model);
  const route = part && part.routes[kind];
  const advice = part && (part.recommendations.find((r) => r.prompt_type === kind) || part.recommendations.find((r) => r.prompt_type === null));
  const live = liveOf(model, kind, route && route.drafting), proof = advice ? advice.proof : {};
  const served = live ? live.drafting : route ? route.drafting : null;
  const proven = served && isOff(served) ? proof.generation_off_tps : advice && served && sameDrafting(served, advice.served_with) ? proof.generation_tps : null;
  const speeds = against(live && live.generation_tps, proven, speed);
  // A switch, a limit or a client may have had them answered otherwise than the plan says now.
  if (live && route && !sameDrafting(live.drafting, route.drafting)) speeds.text += ` (with ${live.label})`;
  speeds.chart = live ? spark(live.recent_tps, proven) : null;
  return {key: `${model}|${kind}`, cells: [
    {text: `${model}, ${kind}`},
    {text: `${count.requests.toFixed(1)} (${percent(total ? count.tokens / total : 0)} of the tokens)`},
    {text: route ? `${label(route.drafting)}${part.why_off[kind] ? `, because: ${WHY_OFF[part.why_off[kind]] || part.why_off[kind]}` : ""}` : "not loaded"},
    {text: advice ? `${advice.verdict}${advice.likely ? ", likely" : ""}, ${advice.status}${advice.speedup ? `, ${times(advice.speedup)}` : ""}` : "not measured"},
    speeds,
    served && isOff(served) ? {text: "–"} : against(live && live.acceptance, advice && proof.acceptance, percent),
  ]};
}

function drawRequests() {
  const rows = [], {models, half_life_s: halfLife} = state.status.traffic;
  for (const [model, kinds] of Object.entries(models)) {
    const total = Object.values(kinds).reduce((sum, count) => sum + count.tokens, 0);
    const sorted = Object.entries(kinds).sort(([, a], [, b]) => b.tokens - a.tokens);
    for (const [kind, count] of sorted) rows.push(requestRow(model, kind, count, total));
  }
  table(byId("requests"), `A request counts half as much after ${duration(halfLife)}. Live figures are medians of the last 50 answers since the proxy's start.`,
    ["Model and prompt type", "Recent requests", "Drafting", "Recommendation", "Live speed", "Live acceptance"], rows);
  show(byId("requests-note"), !rows.length);
}

function drawDaemon() {
  const card = byId("daemon"), {daemon} = state;
  if (!card.firstElementChild) {
    card.append(node("p", {class: "state"}), node("progress", {"aria-label": "Time of this step", max: "1", value: "0"}), node("p", {class: "why small"}), node("ul", {class: "trouble bad"}),
      node("h3", {text: "May it measure?", class: "for-checks"}), node("ul", {class: "checks small"}), node("h3", {text: "Next", class: "for-queue"}), node("ol", {class: "queue small"}),
      node("h3", {text: "Slower than proven", class: "for-gaps"}), node("ul", {class: "gaps small"}), node("h3", {text: "Its last events", class: "for-events"}), node("ul", {class: "events small"}));
  }
  const part = (name) => card.querySelector(`.${name}`);
  const step = daemon && daemon.tuning;
  say(part("state"), !daemon ? state.daemonWhy : step ? `It measures ${step.model} on ${step.prompt_type ? `${step.prompt_type} prompts` : "prompts of all types together"}: ${duration(step.for_s)} of at most ${duration(step.cost_s)}.`
    : daemon.state === "looking" ? "It looks for work." : "It rests.");
  show(card.querySelector("progress"), Boolean(step));
  if (step) set(card.querySelector("progress"), "value", String(Math.min(1, step.for_s / step.cost_s).toFixed(3)));
  say(part("why"), daemon ? `Why: ${step ? step.why : daemon.why}. Measured today: ${duration(daemon.spent_today_s)} of ${daemon.budget}.` : "");
  list(part("trouble"), daemon ? daemon.trouble : []);
  const lists = {
    checks: daemon ? daemon.checks.map((c) => `${c.allows ? "yes" : "no"}: ${c.words}`) : [],
    queue: daemon ? daemon.queue.slice(0, 5).map((i) => `${i.model}, ${i.prompt_type || "all prompt types"}: ${i.why}`).concat(daemon.queue.length > 5 ? [`and ${daemon.queue.length - 5} more`] : []) : [],
    gaps: daemon ? daemon.gaps || [] : [],
    events: daemon ? daemon.events.slice(-8).reverse().map((e) => `${clock(e.at)} ${e.what}`) : [],
  };
  for (const [name, texts] of Object.entries(lists)) {
    list(part(name), texts);
    show(part(`for-${name}`), texts.length > 0);
  }
}

function learn(changed, isFirst) {
  for (const r of changed) {
    state.found.set([r.model, r.backend, r.backend_build, r.prompt_type].join("|"), {...r, isNew: !isFirst});
    if (!isFirst) happened(`New recommendation for ${r.model}, ${r.prompt_type || "any prompt"}: ${r.verdict}${r.speedup ? `, ${times(r.speedup)}` : ""}.`);
  }
  drawRecommendations();
}

function drawRecommendations() {
  const models = new Map();
  for (const r of state.found.values()) models.set(r.model, [...(models.get(r.model) || []), r]);
  const groups = [...models].sort(([a], [b]) => a.localeCompare(b));
  keep(byId("recommendations"), groups, ([model]) => model, () => node("details", {}, node("summary"), node("div")), (details, [model, found]) => {
    const count = (verdict) => found.filter((r) => r.verdict === verdict).length;
    say(details.firstElementChild, `${model}: ${count("enable")} with drafting, ${count("disable")} off, ${count("undecided")} undecided`);
    const rows = found.sort((a, b) => String(a.prompt_type).localeCompare(String(b.prompt_type))).map((r) => ({key: `${r.backend}|${r.backend_build}|${r.prompt_type}`, isNew: r.isNew, cells: [
      {text: r.prompt_type || "any"},
      {text: `${r.verdict}, ${r.status}`, kind: r.verdict === "enable" ? "good" : ""},
      {text: label(r.verdict === "enable" ? r.drafting : r.tried)},
      {text: r.speedup ? `${times(r.speedup)}${r.speedup_ci ? ` (${r.speedup_ci[0].toFixed(2)} to ${r.speedup_ci[1].toFixed(2)})` : ""}` : "–"},
      {text: percent(r.acceptance)},
      {text: r.reason},
      {text: `${r.backend} ${r.backend_build}, ${r.created_at.slice(0, 10)}`},
    ]}));
    table(details.lastElementChild, "Ratios are drafting ÷ off, of whole requests, with their intervals.", ["Prompt type", "Verdict", "Best drafting tried", "Ratio", "Acceptance", "Reason", "Measured"], rows);
  });
  say(byId("recommendations-note"), models.size ? "" : "There is none yet: `autospec tune`, or the daemon, makes them.");
  show(byId("recommendations-note"), !models.size);
}

// ---- The loop

function connection(words, kind) {
  const shown = byId("connection");
  say(shown, words);
  shown.className = kind;
}

function askForKey() {
  if (byId("key").hidden) {
    show(byId("key"), true);
    byId("key-value").focus();
  }
  connection("The proxy needs its key.", "wait");
}

const poll = {
  timer: 0, pause_ms: POLL_MS, readAt: {daemon: 0, models: 0}, running: false,
  async once() {
    if (poll.running || document.hidden) return;
    poll.running = true;
    clearTimeout(poll.timer);
    try {
      const due = (name, every_ms) => performance.now() - poll.readAt[name] >= every_ms || poll.readAt[name] === 0;
      const [status, plan, live, models, daemon] = await Promise.all([
        read("v1/status"), read("v1/plan"), read("v1/live"),
        due("models", MODELS_MS) ? read("../v1/models") : null, due("daemon", DAEMON_MS) ? read("v1/daemon") : null,
      ]);
      if (models) [state.models, poll.readAt.models] = [models.data, performance.now()];
      if (daemon) [state.daemon, state.daemonWhy, poll.readAt.daemon] = [daemon.daemon, daemon.why, performance.now()];
      if (state.status) {
        compareServers(state.status.launches, status.launches);
        compareFailures(state.status.totals, status.totals);
      }
      Object.assign(state, {status, plan, live: live.live});
      for (const draw of [drawNow, drawModels, drawRequests, drawDaemon]) draw();
      announce();
      show(byId("key"), false);
      connection(status.closing ? "The proxy is shutting down." : "Connected", status.closing ? "wait" : "good");
      poll.pause_ms = status.launches.every((server) => server.state === "ready") ? POLL_MS : CHANGING_MS;
      events.open();
    } catch (error) {
      if (error instanceof Unauthorized) askForKey();
      else {
        poll.pause_ms = Math.min(MOST_PAUSE_MS, 2 * Math.max(POLL_MS, poll.pause_ms));
        connection(`The proxy does not answer. Next try in ${duration(poll.pause_ms / 1000)}.`, "bad");
        if (!(error instanceof TypeError || error.name === "TimeoutError")) console.error(error);
      }
    }
    poll.running = false;
    if (byId("key").hidden) poll.timer = setTimeout(poll.once, poll.pause_ms);
  },
  soon() {
    poll.readAt.daemon = 0;
    clearTimeout(poll.timer);
    poll.timer = setTimeout(poll.once, 200);
  },
};

// Recommendations as they change. EventSource cannot send a key, so the stream is read with fetch.
const events = {
  controller: null, seen: false, notBefore: 0, heardAt: 0,
  async open() {
    // The proxy says something every 15 s: a silent stream is a connection that was lost while the machine slept.
    if (events.controller && performance.now() - events.heardAt > SILENT_MS) events.close();
    if (events.controller || document.hidden || performance.now() < events.notBefore) return;
    const controller = events.controller = new AbortController();
    events.heardAt = performance.now();
    try {
      const answer = await ask("v1/events", {signal: controller.signal});
      if (!answer.ok) throw new Error(String(answer.status));
      let left = "", isFirst = true;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const {done, value} = await reader.read();
        if (done) break;
        events.heardAt = performance.now();
        const parts = (left + value).split("\n\n");
        left = parts.pop();
        for (const part of parts) {
          const lines = part.split("\n"), data = lines.find((line) => line.startsWith("data: "));
          if (lines.includes("event: recommendations") && data) {
            // After a pause of the page the first event tells everything again: only what is other than before is new.
            learn(JSON.parse(data.slice(6)).changed.filter((r) => !isFirst || !events.seen || isOther(r)), isFirst && !events.seen);
            [isFirst, events.seen] = [false, true];
            announce();
          }
        }
      }
    } catch (error) {
      if (error.name !== "AbortError" && !(error instanceof TypeError)) console.error(error);
    }
    if (events.controller === controller) events.controller = null;
    events.notBefore = performance.now() + MOST_PAUSE_MS / 6;
  },
  close() {
    if (events.controller) events.controller.abort();
    events.controller = null;
    events.notBefore = 0;
  },
};

function isOther(r) {
  const known = state.found.get([r.model, r.backend, r.backend_build, r.prompt_type].join("|"));
  return !known || known.created_at !== r.created_at || known.status !== r.status || known.reason !== r.reason;
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = byId("key-value").value;
  byId("key-value").value = "";
  show(byId("key"), false);
  poll.once();
});
// A page that nobody sees asks for nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) events.close();
  else poll.once();
});
poll.once();
