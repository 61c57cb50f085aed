// The page of `diffclip serve`: asks in JSON, shows every text as text.
"use strict";
const $ = (id) => document.getElementById(id);
const PAGE = 30;
let parts = []; // {kind, what, weight, name, image}
let asked = 0, offset = 0, more = false, busy = false, open = null, looked = 0;

async function ask(path, body, kind = "application/json") {
  const sent = kind === "application/json" ? JSON.stringify(body) : body;
  const answer = await fetch(path, { method: "POST", headers: { "content-type": kind }, body: sent });
  const content = answer.headers.get("content-type") || "";
  const found = content.startsWith("application/json") ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) throw new Error(found.error || answer.statusText);
  return found;
}
function say(text, wrong = false) {
  $("said").textContent = text;
  $("said").classList.toggle("wrong", wrong);
}
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
const desk = () => Number($("desk").value);
const later = (work, wait) => { let timer; return () => { clearTimeout(timer); timer = setTimeout(work, wait); }; };
const searchSoon = later(() => search(), 250);

function showParts() {
  const list = $("parts");
  list.replaceChildren(...(parts.length > 1 || parts.some((part) => part.kind !== "text") ? parts : []).map((part) => {
    const weight = element("output", { textContent: part.weight.toFixed(1) });
    const slider = element("input", { type: "range", min: -1, max: 1, step: 0.1, value: part.weight, ariaLabel: `weight of ${part.name}` });
    slider.addEventListener("input", () => { part.weight = Number(slider.value); weight.textContent = part.weight.toFixed(1); searchSoon(); });
    const remove = element("button", { type: "button", textContent: "×", ariaLabel: `remove ${part.name}` });
    remove.addEventListener("click", () => { parts = parts.filter((other) => other !== part); showParts(); search(); });
    const image = part.image ? [element("img", { src: part.image, alt: "" })] : [];
    return element("li", {}, ...image, element("span", { textContent: part.name, title: part.name }), slider, weight, remove);
  }));
}
function filters() {
  return Object.fromEntries([...new FormData($("conditions"))].filter(([, value]) => value));
}
async function search() {
  const mine = ++asked;
  offset = 0; more = false; busy = false;
  const used = parts.filter((part) => part.weight !== 0);
  if (!used.length) { $("grid").replaceChildren(); say(""); return; }
  say("searching …");
  await page(mine, true);
}
async function page(mine, first) {
  if (busy && !first) return;
  busy = true;
  try {
    const sent = parts.filter((part) => part.weight !== 0).map(({ kind, what, weight }) => ({ kind, what, weight }));
    const found = await ask("/search", { desk: desk(), parts: sent, count: PAGE, offset, filters: filters() });
    if (mine !== asked) return;
    const tiles = found.hits.map(tile);
    if (first) { $("grid").replaceChildren(...tiles); window.scrollTo(0, 0); } else $("grid").append(...tiles);
    offset += found.hits.length; more = found.more;
    say(offset ? `${offset}${more ? " and more" : ""} ${offset === 1 ? "picture" : "pictures"}, the nearest first` : "nothing found: the conditions leave no picture");
    $("end").textContent = more || !offset ? "" : "that is all";
  } catch (error) {
    if (mine === asked) say(error.message, true);
  } finally {
    if (mine === asked) busy = false;
  }
  if (mine === asked && more && $("end").getBoundingClientRect().top < innerHeight * 2) page(mine, false);
}
function tile(hit) {
  const facts = [hit.taken && `taken ${hit.taken.slice(0, 10)}`, hit.camera && `by ${hit.camera}`].filter(Boolean).join(" ");
  const image = element("img", { src: `/thumbnail/${desk()}/${hit.id}`, loading: "lazy", alt: `picture ${hit.name}${facts ? ", " + facts : ""}` });
  const button = element("button", { type: "button", title: hit.name }, image, element("span", { textContent: `${hit.score.toFixed(3)}  ${hit.name.split("/").pop()}` }));
  button.addEventListener("click", () => show(hit, button));
  return element("li", {}, button);
}
function show(hit, from) {
  open = { hit, desk: desk(), from };
  $("name").textContent = hit.name;
  $("facts").textContent = [`cosine ${hit.score.toFixed(3)}`, hit.width && `${hit.width} × ${hit.height}`, hit.taken, hit.camera].filter(Boolean).join(" · ");
  $("picture").src = `/picture/${open.desk}/${hit.id}`;
  $("picture").alt = `the picture ${hit.name}`;
  document.querySelectorAll("#views .model").forEach((old) => old.remove());
  const text = parts.find((part) => part.kind === "text" && part.weight > 0);
  if (text) $("query").value = text.what;
  if (!$("large").open) $("large").showModal();
  if ($("query").value.trim()) look();
  name();
}
async function look() {
  const mine = ++looked, text = $("query").value.trim();
  if (!open || !text) return;
  document.querySelectorAll("#views .model").forEach((old) => old.remove());
  const waiting = element("figure", { className: "model", textContent: "looking …" });
  $("views").append(waiting);
  try {
    const models = await ask("/look", { desk: open.desk, id: open.hit.id, text });
    if (mine === looked) $("views").append(...models.map((model) => seen(model, text)));
  } catch (error) {
    if (mine === looked) $("views").append(element("figure", { className: "model", textContent: error.message }));
  }
  waiting.remove();
}
function seen(model, text) {
  const figure = element("figure", { className: "model" },
    element("img", { src: model.overlay, alt: `where ${model.model} looks for “${text}”: bright parts matter most` }),
    element("figcaption", { textContent: `${model.model}: cosine ${model.score.toFixed(3)}. ${model.how}.` }));
  if (model.layers.length) {
    const grid = element("div", { className: "layers" });
    grid.style.setProperty("--columns", model.layers.length);
    grid.append(element("b", { textContent: "layer" }), ...model.layers.map((_, i) => element("i", { textContent: i + 1 })));
    for (const map of Object.keys(model.layers.reduce((most, layer) => Object.keys(layer.maps).length > Object.keys(most.maps).length ? layer : most).maps)) {
      grid.append(element("b", { textContent: map }), ...model.layers.map((layer, i) => layer.maps[map]
        ? element("img", { src: layer.maps[map], alt: `${map} of layer ${i + 1}: what the class token attends to`, title: layer.lam === null ? "" : `λ ${layer.lam.toFixed(2)}` })
        : element("i")));
    }
    if (model.layers.some((layer) => layer.lam !== null)) {
      grid.append(element("b", { textContent: "λ" }), ...model.layers.map((layer) => element("i", { textContent: layer.lam === null ? "" : layer.lam.toFixed(2) })));
    }
    figure.append(grid);
  }
  return figure;
}
let named = 0;
async function name() {
  const mine = ++named;
  const labels = [...new Set($("labels").value.split(/[,\n]/).map((label) => label.trim()).filter(Boolean))];
  if (!open || !labels.length) { $("scores").replaceChildren(); return; }
  try {
    const models = await ask("/labels", { desk: open.desk, id: open.hit.id, labels });
    if (mine !== named) return;
    const head = element("tr", {}, element("th", { textContent: "label" }), ...models.map((model) => element("th", { textContent: model.model })));
    const order = labels.map((_, i) => i).sort((a, b) => models[0].labels[b][1] - models[0].labels[a][1]);
    const rows = order.map((i) => element("tr", {}, element("td", { textContent: labels[i] }), ...models.map((model) => element("td", { textContent: `${(100 * model.labels[i][1]).toFixed(1)} %` }))));
    $("scores").replaceChildren(element("table", {}, head, ...rows));
  } catch (error) {
    if (mine === named) $("scores").textContent = error.message;
  }
}
async function dropped(file) {
  if (!file) return;
  if (file.size > 32 * 2 ** 20) { say("that picture has more than 32 MB", true); return; }
  say("reading the picture …");
  try {
    const { upload } = await ask("/upload", file, "application/octet-stream");
    const image = await new Promise((done) => { const reader = new FileReader(); reader.onload = () => done(reader.result); reader.readAsDataURL(file); });
    parts.push({ kind: "upload", what: upload, weight: 1, name: file.name, image });
    showParts(); search();
  } catch (error) { say(error.message, true); }
}
function text(weight) {
  const given = $("text").value.trim();
  if (!given) return;
  if (weight > 0) parts = [{ kind: "text", what: given, weight, name: given }, ...parts.filter((part) => part.kind !== "text" || part.weight <= 0)];
  else { parts.push({ kind: "text", what: given, weight, name: given }); $("text").value = ""; }
  showParts(); search();
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); text(1); });
$("less").addEventListener("click", () => text(-0.5));
$("file").addEventListener("change", () => { dropped($("file").files[0]); $("file").value = ""; });
$("desk").addEventListener("change", () => search());
$("conditions").addEventListener("input", searchSoon);
$("conditions").addEventListener("submit", (event) => event.preventDefault());
$("where").addEventListener("submit", (event) => { event.preventDefault(); look(); });
$("like").addEventListener("click", () => {
  parts = [{ kind: "picture", what: open.hit.id, weight: 1, name: open.hit.name, image: `/thumbnail/${open.desk}/${open.hit.id}` }];
  $("large").close(); showParts(); search();
});
$("labels").addEventListener("input", later(name, 400));
$("name-it").addEventListener("submit", (event) => event.preventDefault());
$("large").addEventListener("close", () => { if (open?.from.isConnected) open.from.focus(); open = null; });
for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("over"); });
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => { event.preventDefault(); dropped(event.dataTransfer.files[0]); });
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !typing && !$("large").open) { event.preventDefault(); $("text").focus(); return; }
  if (typing) return;
  const buttons = [...document.querySelectorAll("#grid button")];
  const columns = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (!step || !buttons.length) return;
  const from = $("large").open ? open.from : document.activeElement;
  const next = buttons[Math.min(Math.max(buttons.indexOf(from) + step, 0), buttons.length - 1)];
  event.preventDefault();
  if ($("large").open) { if (next !== from) next.click(); } else next.focus();
});
new IntersectionObserver((seenNow) => { if (seenNow[0].isIntersecting && more && !busy) page(asked, false); }, { rootMargin: "600px" }).observe($("end"));
