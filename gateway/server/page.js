"use strict";
// All that is shown comes by textContent: no text of a request or of a setting becomes markup.
const PERIOD_MS = 1000;
const find = (id) => document.getElementById(id);

function cell(row, value, kind) {
  const made = row.insertCell();
  made.textContent = value;
  if (kind) made.className = kind;
  return made;
}

const ms = (seconds) => (seconds === null ? "–" : (1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0));

function experts(data) {
  const body = find("experts").tBodies[0];
  const most = Math.max(1, ...data.experts.map((x) => x.tokens_left));
  body.replaceChildren();
  for (const expert of data.experts) {
    const row = body.insertRow();
    cell(row, expert.name, "text");
    cell(row, expert.ready ? "ready" : "not ready", expert.ready ? "good" : "bad");
    cell(row, expert.waiting);
    cell(row, expert.running);
    const bar = cell(row, "", "wide").appendChild(document.createElement("meter"));
    bar.max = most;
    bar.value = expert.tokens_left;
    bar.after(` ${Math.round(expert.tokens_left)}`);
    cell(row, data.recent.filter((x) => x.expert === expert.name).length);
  }
}

function shadow(data) {
  const seen = data.recent.filter((x) => x.shadow !== null);
  const same = seen.filter((x) => x.shadow === x.chosen).length;
  find("shadow").textContent = data.shadow === null
    ? "No policy decides beside the acting one."
    : `${data.shadow}: the same in ${same} of the last ${seen.length}. Rows: acting; columns: shadow.`;
  const table = find("pairs");
  const names = [...data.experts.map((x) => x.name), "drop"];
  table.tHead.replaceChildren();
  table.tBodies[0].replaceChildren();
  if (data.shadow === null) return;
  const head = table.tHead.insertRow();
  for (const name of ["", ...names]) cell(head, name);
  for (const acting of names) {
    const row = table.tBodies[0].insertRow();
    cell(row, acting, "text");
    for (const other of names) {
      const count = seen.filter((x) => x.chosen === acting && x.shadow === other).length;
      cell(row, count || "", acting === other ? "good" : "");
    }
  }
}

function recent(data) {
  const body = find("recent").tBodies[0];
  body.replaceChildren();
  for (const x of data.recent) {
    const row = body.insertRow();
    cell(row, x.ago_s.toFixed(0), "text");
    cell(row, x.expert ?? x.refusal, x.expert === null ? "bad" : "");
    cell(row, x.shadow ?? "–", x.shadow === null || x.shadow === x.chosen ? "" : "bad");
    cell(row, (x.fallback ? `${x.fallback}: ` : "") + x.reasons, "text");
    cell(row, x.scores.map((value) => (value === null ? "–" : value.toFixed(2))).join(" "), "text");
    for (const time of [x.ttft_s, x.predicted_ttft_s, x.tpot_s, x.predicted_tpot_s]) cell(row, ms(time));
    cell(row, x.tokens);
    cell(row, x.violates ? "late" : x.outcome ?? "refused", x.violates ? "bad" : "");
  }
}

async function show() {
  const key = find("key").value;
  try {
    const reply = await fetch("/ui/state", { headers: key ? { authorization: `Bearer ${key}` } : {}, cache: "no-store" });
    find("door").hidden = reply.status !== 401;
    if (!reply.ok) {
      find("state").textContent = reply.status === 401 ? "a key is needed" : `the gateway answered ${reply.status}`;
      return;
    }
    const data = await reply.json();
    find("policy").textContent = data.policy;
    find("state").textContent = data.draining ? "draining" : `${data.under_way} requests under way`;
    experts(data);
    shadow(data);
    recent(data);
  } catch {
    find("state").textContent = "the gateway does not answer";
  }
}

async function keepShowing() {
  await show();
  setTimeout(keepShowing, PERIOD_MS);
}

find("door").addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
keepShowing();
