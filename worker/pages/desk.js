// The review desk: the list, the picture with its areas, and the decision.
//
// Pictures come as blobs, so that no address of the page holds a key. Outputs of the next pictures
// are fetched ahead; sources never are.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SIDE = 2048;
const KEPT = 8; // outputs that are held ready
const RENEW_MS = 30000;
const POLL_MS = 700;
const LIST_MS = 5000;
const FACE = "FACE"; // the label of faces
const LABEL_PX = 14;
const NAME_END = 16; // characters of a name that are never cut
const FIRST_PAGE = 60; // rows that are read again by themselves
const UNUSED = { "X-Veil-Unused": "yes" }; // for what the page asks by itself: its session may end
const byId = (id) => document.getElementById(id);
const showsSources = document.body.dataset.sources === "yes";
const xsrf = document.querySelector("meta[name=xsrf]").content;

const state = {
  list: "", sample: "", rows: [], from: 0, count: 0,
  item: null, size: null, box: null, shapes: [], chosen: -1, tool: "move",
  done: false, stale: false, requested: false, seen: false, polling: 0, sourceShown: false, boxesShown: true,
  busy: false, waiting: null, turn: 0, samples: "", listChosen: false,
};
const drafts = new Map(); // id of a picture -> what was drawn on it, and on which of its versions
const kept = new Map(); // id and version of an output -> {url, width, height}

// --- the server

class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function api(path, body, headers = {}) {
  const options = { headers: { ...headers } };
  if (body !== undefined) {
    options.method = "POST";
    Object.assign(options.headers, { "Content-Type": "application/json", "X-Xsrftoken": xsrf });
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw unanswered(path);
  }
  if (answer.status === 401) ended();
  if (!answer.ok) {
    let fields = {};
    try {
      fields = await answer.json();
    } catch { /* no JSON: the status says enough */ }
    throw new Refusal(answer.status, fields.message || fields.error || `Status ${answer.status}`);
  }
  return answer;
}

// An answer that breaks off, or the page of a proxy that wants a log-in, is no answer of the desk.
async function json(path, body, headers) {
  const answer = await api(path, body, headers);
  try {
    return await answer.json();
  } catch {
    throw unanswered(path);
  }
}

function unanswered(path) {
  const mayCount = path.startsWith("/api/decide/") ? " The decision may count: look at the list before you repeat it." : "";
  return new Refusal(0, `The desk does not answer.${mayCount}`);
}

// Nothing of a picture stays on the screen of a reviewer who has gone.
function ended() {
  showNothing("");
  byId("rows").replaceChildren();
  state.rows = [];
  for (const { url } of kept.values()) URL.revokeObjectURL(url);
  kept.clear();
  for (const dialog of document.querySelectorAll("dialog[open]:not(#ended)")) dialog.close();
  if (!byId("ended").open) byId("ended").showModal();
}

async function picture(kind, item, query) {
  const answer = await api(`/${kind}/${item.id}?${query}`);
  const size = answer.headers.get("X-Picture-Size");
  if (!size) throw unanswered(kind);
  const [width, height] = size.split("x").map(Number);
  const note = answer.headers.get("X-Picture-Note");
  return { url: URL.createObjectURL(await answer.blob()), width, height, note };
}

function keyOf(item) {
  return `${item.id} ${item.version} ${item.revision || 0}`;
}

async function output(item) {
  const key = keyOf(item);
  if (kept.has(key)) return kept.get(key);
  const shown = await picture("output", item, `side=${SIDE}`);
  kept.set(key, shown);
  while (kept.size > KEPT) {
    const [oldest, { url }] = kept.entries().next().value;
    if (state.item && oldest === keyOf(state.item)) break;
    kept.delete(oldest);
    URL.revokeObjectURL(url);
  }
  return shown;
}

// --- the list

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shortName(title) {
  return title.replace(/^s3:\/\//, "");
}

function chipOf(row) {
  if (row.is_gone) return ["can't be marked", "warn"];
  if (row.marked || row.mark) return ["marked", "good"];
  return [row.state, { held: "bad", sample: "" }[row.state] ?? "warn"];
}

function rowOf(row) {
  const thumb = row.has_output
    ? element("img", { class: "thumb", src: `/thumbnail/${row.id}?version=${row.version}`, alt: "", loading: "lazy" })
    : element("span", { class: "thumb", "aria-hidden": "true" }, "held");
  const [word, kind] = chipOf(row);
  const chip = element("span", { class: `chip ${kind}` }, word);
  const title = shortName(row.title);
  const name = element("span", { class: "name" },
    element("bdi", { class: "start" }, title.slice(0, -NAME_END)), element("bdi", {}, title.slice(-NAME_END)));
  const button = element("button", { type: "button", "data-id": row.id, title: row.title }, thumb,
    element("span", {}, name, chip));
  button.addEventListener("click", () => leave(() => open({ id: row.id })));
  return element("li", {}, button);
}

async function loadList(more = false, headers = {}) {
  const from = more ? state.rows.length : 0;
  const query = String(new URLSearchParams({ state: state.list, sample: state.sample, from }));
  const page = await json(`/api/list?${query}`, undefined, headers);
  const present = new URLSearchParams({ state: state.list, sample: state.sample, from: more ? state.rows.length : 0 });
  if (query !== String(present)) return; // The reviewer has chosen another list meanwhile.
  const isSame = !more && JSON.stringify(page.rows) === JSON.stringify(state.rows);
  state.rows = more ? state.rows.concat(page.rows) : page.rows;
  state.count = page.count;
  const list = byId("rows");
  if (!more && !isSame) list.replaceChildren();
  if (!isSame) list.append(...page.rows.map(rowOf));
  byId("more").hidden = state.rows.length >= page.count;
  byId("list-note").textContent = page.count
    ? `${state.rows.length.toLocaleString("en")} of ${page.count.toLocaleString("en")} pictures`
    : "Nothing to review here.";
  const total = Object.values(page.counts).reduce((sum, count) => sum + count, 0);
  for (const place of document.querySelectorAll("[data-count]")) {
    const name = place.dataset.count;
    place.textContent = (name ? page.counts[name] : total).toLocaleString("en");
  }
  markCurrent();
}

function markCurrent() {
  for (const button of byId("rows").querySelectorAll("button")) {
    const isCurrent = Boolean(state.item) && button.dataset.id === state.item.id;
    button.setAttribute("aria-current", String(isCurrent));
    if (isCurrent) scrollInList(button);
  }
}

// Scroll the list and never the page, on which the list of a narrow screen is below the picture.
function scrollInList(button) {
  const list = document.querySelector(".list");
  const [outer, inner] = [list.getBoundingClientRect(), button.getBoundingClientRect()];
  if (inner.top < outer.top) list.scrollTop -= outer.top - inner.top;
  else if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom;
}

function scrollToPicture() {
  const { top } = byId("viewer").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) byId("viewer").scrollIntoView();
}

// The output is hidden where only the source is shown.
function focusPicture() {
  byId(byId("output-figure").hidden ? "source" : "output").focus({ preventScroll: true });
}

// Read the samples, and return the newest that is not finished. Options that stay as they are keep
// the list open for whoever is choosing.
async function loadSamples(headers = {}) {
  const { samples } = await json("/api/samples", undefined, headers);
  const unfinished = samples.filter((sample) => sample.marked < sample.drawn);
  const options = samples.map((sample) => {
    const text = `${sample.name} · ${sample.marked} of ${sample.drawn} · ${sample.addresses.join(", ")}`;
    return [sample.name, text];
  });
  options.unshift(["", unfinished.length ? `Samples (${unfinished.length} to mark)` : "Samples"]);
  if (JSON.stringify(options) !== state.samples) {
    state.samples = JSON.stringify(options);
    const select = byId("samples");
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    select.value = state.sample;
  }
  return unfinished[0];
}

function chooseList(list, sample) {
  byId("samples").value = state.sample; // until it is shown
  leave(() => {
    state.listChosen = true;
    setList(list, sample);
    return showList();
  });
}

function setList(list, sample) {
  state.list = list;
  state.sample = sample;
  for (const button of document.querySelectorAll("#lists button")) {
    button.setAttribute("aria-pressed", String(!sample && button.dataset.state === list));
  }
  byId("samples").value = sample;
}

async function showList() {
  await loadList();
  await openNext();
}

function openNext(headers = {}) {
  return open(state.sample ? { unmarked: true } : {}, headers);
}

// Open the first picture or, unless the reviewer has chosen a list, that of a sample if there is
// nothing else to review.
async function openFirst(sample, headers = {}) {
  if (sample && !state.count && !state.sample && !state.listChosen) {
    setList("", sample.name);
    await loadList(false, headers);
  }
  if (state.count) await openNext(headers);
  else showNothing("Nothing to review here.");
}

// --- the picture

async function open(wanted, headers = {}) {
  const turn = ++state.turn;
  if (state.item) say("");
  const request = {
    state: state.list, sample: state.sample, after: state.item ? state.item.id : "", ...wanted,
  };
  let item;
  try {
    item = await json("/api/next", request, headers);
  } catch (refusal) {
    if (refusal.status !== 409) throw refusal;
    say("Another reviewer has this picture.", "bad");
    focusPicture();
    return;
  }
  if (turn !== state.turn) return;
  if (item.id) await show(item);
  else if (state.item === null || state.done || state.stale) showNothing("Nothing is left here that nobody else has.");
  else say("Nothing else is left here that nobody has.");
}

function showNothing(text) {
  keepDraft();
  state.item = null;
  byId("title").textContent = "Nothing chosen";
  byId("facts").replaceChildren();
  byId("output").replaceChildren();
  byId("source").replaceChildren();
  byId("source-figure").hidden = true;
  byId("empty").textContent = text;
  byId("empty").hidden = false;
  allow();
  markCurrent();
}

async function show(item) {
  keepDraft();
  Object.assign(state, {
    item, shapes: marked(item), chosen: -1, size: null, box: null, polling: state.polling + 1,
    done: item.is_gone, stale: false, requested: false, seen: false,
  });
  const draft = drafts.get(item.id);
  const isSample = item.state === "sample";
  chooseTool(isSample ? "extra" : "move");
  byId("extra-name").textContent = isSample ? "Mark a face" : "Hide a box";
  toolOf("polygon").hidden = isSample;
  // What is drawn on one version of the source would be at other places of the held one.
  toolOf("exempt").hidden = isSample || (item.is_other_version && !showsSources);
  byId("redo-options").hidden = isSample;
  byId("method").value = byId("region").value = "";
  byId("redo").classList.toggle("main", !isSample);
  byId("accept").classList.toggle("main", isSample);
  byId("drop").hidden = isSample;
  byId("title").textContent = item.title;
  describe(item);
  allow();
  if (item.is_gone) say("The output was replaced or deleted since it was drawn: it can't be marked. Press Enter.");
  byId("empty").hidden = true;
  byId("output").replaceChildren();
  byId("source").replaceChildren();
  if (draft) restore(draft, item);
  await load(item);
  markCurrent();
  focusPicture();
  scrollToPicture();
  ahead();
}

function describe(item) {
  const isMade = state.done && !item.is_gone;
  const facts = isMade ? [["published", "good"]] : [chipOf(item), [item.reason, ""]];
  const found = counted(item);
  if (found) facts.push([`${found} ${item.state === "held" && !state.done ? "found" : "hidden"}`, ""]);
  if (item.left_xyxy.length) facts.push([`${item.left_xyxy.length} still found`, "bad"]);
  byId("facts").replaceChildren(...facts.map(([text, kind]) => element("span", { class: `chip ${kind}` }, text)));
}

function times(count, name) {
  return `${count.toLocaleString("en")} ${count === 1 ? name : `${name}s`}`;
}

// The objects of a picture, such as "1 face, 2 plates"; nothing if they are not known.
function counted(item) {
  const labels = item.labels || (item.faces === null ? {} : { [FACE]: item.faces });
  return Object.entries(labels).map(([label, count]) => times(count, nameOf(label))).join(", ");
}

function nameOf(label) {
  return label === FACE ? "face" : label;
}

// Return whether Enter shows the next picture, because this one has no decision any more.
function isOver() {
  return state.done || (state.stale && state.item?.state === "sample");
}

// Return whether the picture has an output to decide on that was not shown.
function isUnseen() {
  return Boolean(state.item) && state.item.state !== "held" && !isOver() && !state.seen;
}

// Allow the decisions that the picture has. While it is made again it has none. An output that was
// not shown can't be accepted, and if it is of a sample, its mark would count as a review.
function allow() {
  const { item, done, requested } = state;
  const isOpen = Boolean(item) && !requested;
  byId("accept").disabled = !isOpen || isUnseen();
  byId("redo").disabled = !isOpen || !item.source || item.is_gone || (item.state === "sample" && isUnseen());
  byId("drop").disabled = !isOpen || done;
  const names = {
    held: item && `Publish, with ${hiddenIn(item)}`, flagged: "Accept", "low score": "Accept", sample: "Save marks",
  };
  byId("accept-name").textContent = isOver() ? "Next picture" : names[item?.state] || "Accept";
}

// What is hidden if a picture is published, in words.
function hiddenIn(item) {
  const drawn = (item.options.extra || []).length;
  const parts = Object.entries(item.labels || { [FACE]: item.faces ?? item.boxes_xyxy.length })
    .filter(([, count]) => count)
    .map(([label, count]) => times(count, nameOf(label)));
  if (drawn) parts.push(times(drawn, "drawn area"));
  return `${parts.length ? parts.join(" and ") : "nothing"} hidden`;
}

// --- drafts: what was drawn on a picture stays with it until it is decided

function marked(item) {
  return item.mark ? item.mark.exposed_xyxy.map((area) => ({ kind: "extra", area, isSent: true })) : [];
}

// Return how many areas of the picture were neither requested nor saved.
function unsent() {
  return state.shapes.filter(({ isSent }) => !isSent).length + (drawing.points.length ? 1 : 0);
}

// Return whether marks that were saved have been removed, and this has not been saved.
function hasRemoved() {
  const { item, shapes, done } = state;
  return !done && shapes.filter(({ isSent }) => isSent).length < marked(item).length;
}

function keepDraft() {
  const { item, shapes } = state;
  if (!item) return;
  if (unsent() || hasRemoved()) drafts.set(item.id, { shapes, points: drawing.points, version: item.version, etag: item.etag });
  else drafts.delete(item.id);
}

// Marks that others saved since stay. Areas that are clear in one version of the source may show a
// face in another, so they go.
function restore(draft, item) {
  if (draft.points.length) chooseTool("polygon");
  drawing.points = draft.points;
  if (draft.version === item.version) {
    state.shapes = draft.shapes;
    return;
  }
  const isOther = draft.etag !== item.etag;
  const own = draft.shapes.filter(({ kind, isSent }) => !isSent && !(isOther && kind === "exempt"));
  state.shapes = [...state.shapes, ...own];
  const without = isOther ? ", without those that stay clear" : "";
  say(`The picture has changed since you drew on it: look at the areas again${without}.`, "bad");
}

function forgetDrawn() {
  state.shapes = [];
  drawing.points = [];
  draw();
}

// Do `work`, which loses the areas of the picture. If there are any, ask first.
function unlessDrawn(work) {
  const count = unsent();
  if (!count) {
    work();
    return;
  }
  const [are, them] = count === 1 ? ["is", "it"] : ["are", "them"];
  const choices = [[`Go on without ${them}`, () => {
    forgetDrawn();
    work();
  }]];
  if (!byId("redo").disabled) choices.unshift(["Redo", redo]);
  ask([`You drew ${times(count, "area")} that ${are} not hidden: redo, or go on without ${them}?`], choices);
}

// Show another picture. What was drawn stays with this one, unless it has left the list.
function leave(work) {
  if (state.busy || !(state.done || state.requested)) guarded(work, true);
  else unlessDrawn(() => guarded(work, true));
}

async function load(item) {
  const isCurrent = () => state.item === item;
  let shown = null;
  if (item.has_output) {
    try {
      shown = await output(item);
    } catch (refusal) {
      if (!isCurrent()) return;
      const reason = refusal.status === 404 ? "The output is gone." : refusal.message;
      const what = item.state === "sample" ? "marked" : "accepted";
      say(isUnseen() ? `It can't be ${what}, because it can't be shown: ${reason}` : reason, "bad");
    }
  }
  if (!isCurrent()) return;
  state.seen ||= Boolean(shown);
  allow();
  state.size = shown ? { width: shown.width, height: shown.height } : guessedSize(item);
  setPicture(byId("output"), shown && shown.url);
  caption("output-figure", captionOf(item, shown), shown);
  const isNeeded = !shown || (item.state === "held" && !state.done);
  const needsSource = showsSources && item.source && (state.sourceShown || isNeeded);
  if (showsSources) {
    byId("sources").disabled = isNeeded; // There is nothing else to look at.
    byId("sources").setAttribute("aria-pressed", String(Boolean(needsSource)));
  }
  byId("source-figure").hidden = !needsSource;
  byId("output-figure").hidden = Boolean(needsSource && !shown);
  fit();
  if (needsSource) await loadSource(item);
}

// Whoever decides must know that there are frames that she does not see.
function caption(figure, text, shown) {
  byId(figure).querySelector("figcaption").textContent = shown?.note ? `${text}: ${shown.note}` : text;
}

function captionOf(item, shown) {
  if (item.state !== "held" || state.done) return shown ? "output" : "no output";
  if (item.is_other_version) return "held: an output of another version of the source is published";
  if (shown || item.has_output) return "held: an earlier output is published";
  return item.has_output === null ? "held: the store does not say if an earlier output is published" : "no output: held";
}

async function loadSource(item) {
  try {
    const shown = await picture("source", item, `side=${SIDE}`);
    if (state.item !== item) return;
    const isNew = !item.has_output || item.state === "held";
    state.size = { width: shown.width, height: shown.height };
    caption("source-figure", "source, not anonymized", shown);
    setPicture(byId("source"), shown.url);
    byId("source").querySelector("image").addEventListener("load", () => URL.revokeObjectURL(shown.url), { once: true });
    if (isNew) fit();
    else draw();
  } catch (refusal) {
    if (state.item !== item) return;
    if (item.is_other_version) keepNothingClear();
    say(refusal.message, "bad");
  }
}

// What is drawn on one version of the source would be at other places of the held one.
function keepNothingClear() {
  toolOf("exempt").hidden = true;
  if (state.tool === "exempt") chooseTool("move");
  state.shapes = state.shapes.filter(({ kind }) => kind !== "exempt");
  state.chosen = -1;
  draw();
}

function guessedSize(item) {
  if (item.width && item.height) return { width: item.width, height: item.height };
  const boxes = [...item.boxes_xyxy, ...item.left_xyxy];
  const width = Math.max(640, ...boxes.map((box) => box[2] * 1.1));
  const height = Math.max(480, ...boxes.map((box) => box[3] * 1.1));
  return { width: Math.ceil(width), height: Math.ceil(height) };
}

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function setPicture(place, url) {
  place.replaceChildren();
  if (url) {
    place.append(svg("image", {
      href: url, x: 0, y: 0, width: state.size.width, height: state.size.height, preserveAspectRatio: "none",
    }));
  } else {
    place.append(svg("rect", { x: 0, y: 0, width: state.size.width, height: state.size.height, fill: "#2a3240" }));
  }
  place.append(svg("g", { class: "areas" }));
}

function ahead() {
  const place = state.rows.findIndex((row) => state.item && row.id === state.item.id);
  for (const row of state.rows.slice(place + 1, place + 3)) {
    if (row.has_output) output(row).catch(() => {});
  }
}

// --- zoom

function fit() {
  if (!state.size) return;
  state.box = { x: 0, y: 0, width: state.size.width, height: state.size.height };
  applyBox();
}

function applyBox() {
  const { x, y, width, height } = state.box;
  for (const place of [byId("output"), byId("source")]) {
    place.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
  }
  draw();
  clearTimeout(applyBox.timer);
  applyBox.timer = setTimeout(() => sharpen().catch(() => {}), 250);
}

function zoom(factor, at) {
  if (!state.box) return;
  const { box, size } = state;
  const width = Math.min(size.width, Math.max(box.width / factor, 24));
  const height = (width / size.width) * size.height;
  const centre = at || { x: box.x + box.width / 2, y: box.y + box.height / 2 };
  const share = { x: (centre.x - box.x) / box.width, y: (centre.y - box.y) / box.height };
  state.box = { x: centre.x - share.x * width, y: centre.y - share.y * height, width, height };
  keepInside();
  applyBox();
}

function keepInside() {
  const { box, size } = state;
  box.x = Math.min(Math.max(box.x, 0), size.width - box.width);
  box.y = Math.min(Math.max(box.y, 0), size.height - box.height);
}

// Fetch the part that is shown at its full resolution, if the picture has more than the view.
async function sharpen() {
  const { item, size, box } = state;
  if (!item || !size || Math.max(size.width, size.height) <= SIDE || box.width > size.width / 1.5) return;
  const part = [box.x, box.y, box.x + box.width, box.y + box.height].map((side) => Math.max(0, Math.round(side)));
  const places = [];
  if (item.has_output) places.push(["output", byId("output")]);
  if (showsSources && !byId("source-figure").hidden) places.push(["source", byId("source")]);
  for (const [kind, place] of places) {
    const shown = await picture(kind, item, `side=${SIDE}&box=${part.join(",")}`);
    if (state.item !== item || state.box !== box) {
      URL.revokeObjectURL(shown.url);
      return;
    }
    place.querySelector("image.sharp")?.remove();
    const image = svg("image", {
      class: "sharp", href: shown.url, x: part[0], y: part[1], width: part[2] - part[0], height: part[3] - part[1],
      preserveAspectRatio: "none",
    });
    image.addEventListener("load", () => URL.revokeObjectURL(shown.url), { once: true });
    place.querySelector(".areas").before(image);
  }
}

// --- areas

function boxElement([x1, y1, x2, y2], kind) {
  return svg("rect", { x: x1, y: y1, width: Math.max(1, x2 - x1), height: Math.max(1, y2 - y1), class: `shape ${kind}` });
}

// A face is a box. An object of another label has another colour, and its label beside the box.
function foundElements(place, box, label = FACE) {
  if (label === FACE) return [boxElement(box, "found")];
  const size = LABEL_PX / (place.getScreenCTM()?.a || 1);
  const text = svg("text", { x: box[0], y: Math.max(size, box[1] - size / 3), "font-size": size, class: "label" });
  text.textContent = label;
  return [boxElement(box, "found other"), text];
}

function areaElement(area, kind) {
  if (area.length === 4) return boxElement(area, kind);
  const points = [];
  for (let place = 0; place < area.length; place += 2) points.push(`${area[place]},${area[place + 1]}`);
  return svg(kind.includes("open") ? "polyline" : "polygon", { points: points.join(" "), class: `shape ${kind}` });
}

function draw() {
  const { item } = state;
  if (!item) return;
  for (const place of [byId("output"), byId("source")]) {
    const areas = place.querySelector(".areas");
    if (!areas) continue;
    areas.replaceChildren();
    if (state.boxesShown) {
      item.boxes_xyxy.forEach((box, number) => areas.append(...foundElements(place, box, item.box_labels?.[number])));
      for (const box of item.left_xyxy) areas.append(boxElement(box, "left"));
      for (const name of ["extra", "exempt"]) {
        for (const area of item.options[name] || []) areas.append(areaElement(area, `was-${name}`));
      }
    }
    state.shapes.forEach(({ kind, area }, number) => {
      areas.append(areaElement(area, `${kind}${number === state.chosen ? " chosen" : ""}`));
    });
    if (drawing.points.length) areas.append(areaElement(drawing.points, "polygon open"));
    if (drawing.area) areas.append(areaElement(drawing.area, drawing.kind));
  }
  const names = { extra: item.state === "sample" ? "exposed face" : "hide", polygon: "hide", exempt: "keep clear" };
  byId("shapes").replaceChildren(...state.shapes.map(({ kind, area }, number) => {
    const [x1, y1, x2, y2] = bounds(area);
    const remove = element("button", { type: "button", "aria-label": `Remove area ${number + 1}` }, "Remove");
    remove.addEventListener("click", () => removeShape(number));
    return element("li", {}, `${names[kind]}: ${x2 - x1} × ${y2 - y1} px`, remove);
  }));
}

function bounds(area) {
  const xs = area.filter((_, place) => place % 2 === 0);
  const ys = area.filter((_, place) => place % 2 === 1);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

function addShape(kind, area) {
  const { width, height } = state.size;
  const whole = area.map((side, place) => Math.min(Math.max(Math.round(side), 0), place % 2 ? height : width));
  const [x1, y1, x2, y2] = bounds(whole);
  if (x2 - x1 < 2 || y2 - y1 < 2) return;
  state.shapes.push({ kind, area: whole, isSent: false });
  state.chosen = state.shapes.length - 1;
  draw();
}

function removeShape(number) {
  state.shapes.splice(number, 1);
  state.chosen = -1;
  draw();
}

function insertBox() {
  if (!state.size) return;
  const kind = state.tool === "exempt" ? "exempt" : "extra";
  const { x, y, width, height } = state.box;
  const side = Math.max(2, Math.round(Math.min(width, height) / 5));
  const [left, top] = [Math.round(x + (width - side) / 2), Math.round(y + (height - side) / 2)];
  addShape(kind, [left, top, left + side, top + side]);
}

function nudge(dx, dy, resizes) {
  const shape = state.shapes[state.chosen];
  const step = Math.max(1, Math.round(state.box.width / 100));
  const { width, height } = state.size;
  const moved = shape.area.map((side, place) => {
    if (resizes && (shape.area.length !== 4 || place < 2)) return side;
    const limit = place % 2 ? height : width;
    return Math.min(Math.max(side + (place % 2 ? dy : dx) * step, 0), limit);
  });
  const [x1, y1, x2, y2] = bounds(moved);
  if (x2 - x1 >= 2 && y2 - y1 >= 2) Object.assign(shape, { area: moved, isSent: false });
  draw();
}

function chooseTool(tool) {
  state.tool = tool;
  Object.assign(drawing, { points: [], area: null, start: null });
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
  for (const place of [byId("output"), byId("source")]) place.classList.toggle("drawing", tool !== "move");
  draw();
}

// --- pointers: one draws or moves, two zoom

const drawing = { points: [], area: null, start: null, kind: "" };
const pointers = new Map();

function positionOf(event, place) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(place.getScreenCTM().inverse());
  return { x: point.x, y: point.y };
}

function pointerDown(event) {
  if (!state.size || event.button > 0) return;
  const place = event.currentTarget;
  place.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (pointers.size > 1) {
    drawing.area = null;
    return;
  }
  const at = positionOf(event, place);
  if (state.tool === "polygon") {
    const [x, y] = drawing.points;
    const near = state.box.width / 60;
    if (drawing.points.length >= 6 && Math.hypot(at.x - x, at.y - y) < near) closePolygon();
    else drawing.points.push(Math.round(at.x), Math.round(at.y));
    draw();
  } else if (state.tool !== "move") {
    Object.assign(drawing, { start: at, kind: state.tool, area: null });
  }
}

function pointerMove(event) {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const place = event.currentTarget;
  const now = { x: event.clientX, y: event.clientY };
  if (pointers.size === 2) {
    const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    const distance = (point) => Math.hypot(point.x - other.x, point.y - other.y);
    const middle = { clientX: (now.x + other.x) / 2, clientY: (now.y + other.y) / 2 };
    zoom(distance(now) / Math.max(distance(before), 1), positionOf(middle, place));
  } else if (state.tool === "move") {
    const scale = place.getScreenCTM().a;
    state.box = { ...state.box, x: state.box.x - (now.x - before.x) / scale, y: state.box.y - (now.y - before.y) / scale };
    keepInside();
    applyBox();
  } else if (state.tool !== "polygon" && drawing.start) {
    const at = positionOf(event, place);
    const { start } = drawing;
    drawing.area = [Math.min(start.x, at.x), Math.min(start.y, at.y), Math.max(start.x, at.x), Math.max(start.y, at.y)];
    draw();
  }
  pointers.set(event.pointerId, now);
}

function pointerUp(event) {
  pointers.delete(event.pointerId);
  if (drawing.area) addShape(drawing.kind, drawing.area);
  Object.assign(drawing, { area: null, start: null });
  draw();
}

// A touch that the browser takes for something else has drawn nothing.
function pointerCancel(event) {
  drawing.area = null;
  pointerUp(event);
}

// Close an open polygon, and return whether none is left open.
function closePolygon() {
  const { points } = drawing;
  if (points.length && points.length < 6) {
    say("The polygon is not closed: give it three corners and press Enter, or press Esc to remove it.", "bad");
    return false;
  }
  if (points.length) addShape("polygon", points);
  drawing.points = [];
  draw();
  return true;
}

function removeLast() {
  if (drawing.points.length) drawing.points.splice(-2);
  else if (state.shapes.length) state.shapes.splice(state.chosen < 0 ? -1 : state.chosen, 1);
  state.chosen = -1;
  draw();
}

function toolOf(name) {
  return document.querySelector(`[data-tool=${name}]`);
}

function pickTool(tool) {
  if (tool !== state.tool && !toolOf(tool).hidden && closePolygon()) chooseTool(tool);
}

for (const place of [byId("output"), byId("source")]) {
  place.addEventListener("pointerdown", pointerDown);
  place.addEventListener("pointermove", pointerMove);
  place.addEventListener("pointerup", pointerUp);
  place.addEventListener("pointercancel", pointerCancel);
  place.addEventListener("dblclick", closePolygon);
  place.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (state.box) zoom(event.deltaY < 0 ? 1.25 : 0.8, positionOf(event, place));
  }, { passive: false });
}

// --- decisions

function say(text, kind = "") {
  byId("status").textContent = text;
  byId("status").className = kind;
}

// Say `text` before what was said of the picture that is shown now, which must not be lost.
function sayFirst(text, kind) {
  const status = byId("status");
  if (status.textContent) say(`${text} ${status.textContent}`, status.className);
  else say(text, kind);
}

// Run `work` unless other work is in progress: a key that is pressed twice decides once. Work that
// `waits`, which decides nothing, follows the present one, unless that is refused: the reviewer has
// to see why.
async function guarded(work, waits = false) {
  if (state.busy) {
    if (waits) state.waiting = work;
    return;
  }
  state.busy = true;
  byId("viewer").setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (refusal) {
    state.waiting = null;
    if (!(refusal instanceof Refusal)) throw refusal;
    say(refusal.message, "bad");
  } finally {
    state.busy = false;
    byId("viewer").setAttribute("aria-busy", "false");
  }
  const next = state.waiting;
  state.waiting = null;
  if (next) guarded(next);
}

function areasOf(...kinds) {
  return state.shapes.filter(({ kind }) => kinds.includes(kind)).map(({ area }) => area);
}

async function decide(action, more = {}) {
  const { item } = state;
  try {
    return await json(`/api/decide/${item.id}`, { action, version: item.version, ...more });
  } catch (refusal) {
    if (state.item === item && [404, 409].includes(refusal.status)) {
      state.stale = true;
      allow();
    }
    throw refusal;
  }
}

// Return whether the decision of a button is possible now. If it has to wait, say so.
function isPossible(id) {
  if (!state.item || byId(id).hidden) return false;
  if (state.busy) say("Not yet: press it again when the picture is there.", "bad");
  else if (state.requested) say("A worker makes it again: wait, or press n for the next picture.");
  return !state.busy && !byId(id).disabled;
}

function ask(text, choices) {
  byId("confirm-text").replaceChildren(...text);
  byId("confirm-choices").replaceChildren(...choices.map(([name, work], place) => {
    const button = element("button", { type: "button", class: place ? null : "main" }, name);
    button.addEventListener("click", () => {
      byId("confirm").close();
      work();
    });
    return button;
  }));
  focusPicture(); // which has the focus again after the dialog
  byId("confirm").showModal();
  byId("confirm-choices").firstChild.focus();
}

function redo() {
  if (!isPossible("redo") || !closePolygon()) return;
  focusPicture();
  const isMark = state.item.state === "sample" && !state.done;
  if (isMark && !state.shapes.length) {
    say("Mark a face first, or press Enter if none is exposed.", "bad");
    return;
  }
  say("");
  guarded(async () => {
    if (isMark) await saveMarks();
    await request("redo", {
      extra: areasOf("extra", "polygon"), exempt: areasOf("exempt"),
      method: byId("method").value, region: byId("region").value,
    });
  });
}

async function saveMarks() {
  const { item } = state;
  const exposed = areasOf("extra");
  const { version } = await decide("mark", { exposed });
  Object.assign(item, { version, mark: { exposed_xyxy: exposed } });
}

async function request(action, fields = {}) {
  const { item } = state;
  const { task, version } = await decide(action, fields);
  for (const shape of state.shapes) shape.isSent = true;
  state.requested = true;
  allow();
  say("Queued: waiting for a worker …");
  watch(item, task, version, ++state.polling).catch((refusal) => failed(item, refusal.message));
}

// What was drawn can be requested again.
function failed(item, text) {
  if (state.item !== item) return;
  for (const shape of state.shapes) shape.isSent = false;
  state.requested = false;
  allow();
  say(text, "bad");
}

async function watch(item, task, version, polling) {
  while (state.polling === polling && state.item === item) {
    await pause();
    const result = await resultOf(task);
    if (state.polling !== polling || state.item !== item) return;
    if (result.state === "done") {
      await finished(item, result, version);
      return;
    }
    if (result.state === "dead") {
      failed(item, `${result.error}: ${result.message}`);
      return;
    }
    if (result.state === "asking again") say("Queued. The desk does not answer: asking again …", "bad");
    else say(result.state === "pending" ? "Queued: waiting for a worker …" : `In work: ${result.state} …`);
  }
}

function pause() {
  return new Promise((resolve) => setTimeout(resolve, POLL_MS));
}

// The request goes on while the desk or Redis does not answer, so it has not failed.
async function resultOf(task) {
  try {
    return await json(`/api/result/${task}`, undefined, UNUSED);
  } catch (refusal) {
    if (![0, 502, 503, 504].includes(refusal.status)) throw refusal;
    return { state: "asking again" };
  }
}

// Show the new output. A picture that is still on the list is read again, as another version. If the
// reviewer is leaving it, the next picture must not give way to it.
async function finished(item, result, version) {
  if (result.reason) {
    while (state.busy) await pause();
    if (state.item === item) await guarded(() => showAgain(item, result));
  } else {
    Object.assign(item, {
      version, has_output: true, is_other_version: false, revision: (item.revision || 0) + 1, left_xyxy: [],
      boxes_xyxy: result.boxes_xyxy ?? [], box_labels: result.box_labels ?? null,
      faces: result.faces ?? item.faces, labels: result.labels ?? null, options: result.options ?? item.options,
    });
    Object.assign(state, { done: true, requested: false, chosen: -1 });
    state.shapes = state.shapes.filter(({ isSent }) => !isSent);
    describe(item);
    allow();
    say("");
    await load(item);
    if (state.item === item) sayFirst(`Done: this is the new output, with ${hiddenIn(item)}.`, "good");
  }
  loadList().catch(() => {});
}

async function showAgain(item, result) {
  const again = await json("/api/next", { id: item.id }).catch((refusal) => {
    failed(item, refusal.message);
    throw refusal;
  });
  say("");
  await show(again);
  const ending = result.status === "held" ? "Held again" : "Published, and still flagged";
  sayFirst(`${ending}: ${result.reason}.`, "bad");
}

function accept() {
  const { item } = state;
  if (item?.state === "sample" && state.requested) { // Its marks are saved.
    leave(() => openNext());
    return;
  }
  if (!isPossible("accept") || !closePolygon()) return;
  focusPicture();
  if (isOver()) leave(() => openNext());
  else if (item.state === "sample") guarded(acceptNow);
  else unlessDrawn(item.state === "held" ? askToPublish : () => guarded(acceptNow));
}

function askToPublish() {
  const { item } = state;
  // A name with marks of direction turns no other word around.
  const text = ["Publish ", element("bdi", {}, item.title), `, with ${hiddenIn(item)}? It is held: ${item.reason}.`];
  ask(text, [["Publish", () => guarded(() => request("release"))]]);
}

async function acceptNow() {
  const { item } = state;
  const actions = { flagged: "release", "low score": "accept", sample: "mark" };
  await decide(actions[item.state], item.state === "sample" ? { exposed: areasOf("extra") } : {});
  await afterwards(item.state === "sample" ? "Marks saved." : "Accepted.");
}

async function afterwards(text) {
  state.done = true;
  forgetDrawn();
  await openNext();
  sayFirst(text, "good");
  await loadList();
  if (state.sample) loadSamples().catch(() => {});
}

function drop() {
  if (!isPossible("drop")) return;
  focusPicture();
  unlessDrawn(() => guarded(async () => {
    await decide("drop");
    await afterwards("Dropped from the list.");
  }));
}

// --- keys and buttons

function toggle(id, name) {
  state[name] = !state[name];
  byId(id).setAttribute("aria-pressed", String(state[name]));
}

function toggleBoxes() {
  toggle("boxes", "boxesShown");
  draw();
}

function toggleSource() {
  if (!showsSources || byId("sources").disabled) return;
  toggle("sources", "sourceShown");
  if (state.item) load(state.item).catch((refusal) => say(refusal.message, "bad"));
}

const forward = () => leave(() => open({}));
const backward = () => leave(() => open({ back: true }));
const KEYS = {
  n: forward, p: backward, "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
  b: toggleBoxes, s: toggleSource, v: () => pickTool("move"), h: () => pickTool("extra"),
  g: () => pickTool("polygon"), c: () => pickTool("exempt"), i: insertBox, r: redo, d: drop,
  Delete: removeLast,
  "?": () => byId("help").showModal(),
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target;
  if (target.matches("input, select, textarea")) return;
  if (event.key === "Escape") {
    state.chosen = -1;
    chooseTool("move");
  } else if (event.key === "Enter") {
    if (target.matches("button, a, summary")) return;
    if (event.repeat) return; // A key that is held down decides once.
    if (drawing.points.length) closePolygon();
    else accept();
  } else if (event.key in ARROWS) {
    const [dx, dy] = ARROWS[event.key];
    if (state.chosen >= 0) nudge(dx, dy, event.shiftKey);
    else if (dx && !event.repeat) (dx > 0 ? forward : backward)();
    else return;
  } else if (event.key in KEYS) {
    if (state.item?.state === "sample" && "gcd".includes(event.key)) return;
    if (event.repeat && "rd".includes(event.key)) return;
    KEYS[event.key]();
  } else {
    return;
  }
  event.preventDefault();
});

const BUTTONS = {
  next: forward, previous: backward, "zoom-in": () => zoom(1.5), "zoom-out": () => zoom(1 / 1.5), "zoom-fit": fit,
  boxes: toggleBoxes, sources: toggleSource, redo, accept, drop, more: () => guarded(() => loadList(true)),
  "help-button": () => byId("help").showModal(), "help-close": () => byId("help").close(),
  "confirm-no": () => byId("confirm").close(),
  "log-out": () => {
    keepDraft();
    if (!drafts.size) logOut();
    else ask([`You drew on ${times(drafts.size, "picture")} what is not hidden: log out without it?`], [["Log out", logOut]]);
  },
};

async function logOut() {
  drafts.clear();
  if (state.item) forgetDrawn();
  if (state.item) await api(`/api/claim/${state.item.id}`, { end: true }).catch(() => {});
  await api("/logout", {}).catch(() => {});
  location.replace("/login");
}

byId("confirm").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.repeat) event.preventDefault(); // The key is held down since the question.
});
byId("ended").addEventListener("close", ended);
addEventListener("beforeunload", (event) => {
  keepDraft();
  if (drafts.size) event.preventDefault();
});
for (const [id, work] of Object.entries(BUTTONS)) byId(id)?.addEventListener("click", work);
for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => pickTool(button.dataset.tool));
}
for (const button of document.querySelectorAll("#lists button")) {
  button.addEventListener("click", () => chooseList(button.dataset.state, ""));
}
byId("samples").addEventListener("change", () => chooseList("", byId("samples").value));

setInterval(() => {
  if (state.item) {
    api(`/api/claim/${state.item.id}`, {}, UNUSED).catch((refusal) => {
      if (refusal.status === 409) say("Another reviewer has this picture now.", "bad");
    });
  }
}, RENEW_MS);

// Read the lists again. Decisions do not wait for this.
async function readAgain() {
  const sample = await loadSamples(UNUSED);
  if (state.rows.length <= FIRST_PAGE) await loadList(false, UNUSED);
  if (!state.item) guarded(() => openFirst(sample, UNUSED));
}

let isReading = false;
setInterval(async () => {
  if (document.hidden || state.busy || isReading || byId("ended").open) return;
  isReading = true;
  await readAgain().catch((refusal) => say(refusal.message, "bad"));
  isReading = false;
}, LIST_MS);
addEventListener("pagehide", () => {
  if (!state.item) return;
  fetch(`/api/claim/${state.item.id}`, {
    method: "POST", keepalive: true, headers: { "Content-Type": "application/json", "X-Xsrftoken": xsrf },
    body: JSON.stringify({ end: true }),
  }).catch(() => {});
});

guarded(async () => {
  await loadList();
  await openFirst(await loadSamples());
});
