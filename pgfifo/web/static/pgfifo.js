// The pages work without this. With it they are live, ages go on, charts answer the pointer, and keys lead around.
"use strict";

(() => {
  const body = document.body;
  const live = document.getElementById("live");
  const liveState = document.getElementById("live-state");

  // -- what is new takes the place of what is old, node by node, so that focus, selection and scrolling stay

  const keyOf = (node) => (node.nodeType === 1 ? node.id || node.dataset.key || null : null);
  const same = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName && keyOf(one) === keyOf(other);

  function morph(old, fresh) {
    if (old.nodeType !== 1) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "tabindex") old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    children(old, fresh);
  }

  function children(old, fresh) {
    const keyed = new Map();
    for (const child of old.childNodes) if (keyOf(child)) keyed.set(keyOf(child), child);
    const coming = [...fresh.childNodes];
    const stay = new Set(coming.map(keyOf));
    const own = (node) => node.nodeType === 1 && node.hasAttribute("data-own");
    let at = old.firstChild;
    const pass = () => {
      const passed = at;
      at = at.nextSibling;
      if (!own(passed)) passed.remove();
    };
    coming.forEach((child, n) => {
      // What is gone goes first: whatever stays is not moved then, as that would take the focus away from it.
      const gone = (node) => {
        if (own(node)) return true;
        if (keyOf(node)) return !stay.has(keyOf(node));
        if (child.nodeType !== 1) return false;
        return node.nodeType !== 1 || (!same(node, child) && !coming.slice(n).some((each) => same(node, each)));
      };
      while (at && gone(at)) pass();
      const key = keyOf(child);
      const known = key ? keyed.get(key) : at && !keyOf(at) ? at : null;
      if (known && same(known, child)) {
        keyed.delete(key);
        if (known === at) at = at.nextSibling;
        else old.insertBefore(known, at);
        morph(known, child);
      } else {
        old.insertBefore(child, at);
      }
    });
    while (at) pass();
  }

  // -- live

  function said(state, text, title) {
    if (!liveState) return;
    liveState.dataset.state = state;
    if (liveState.textContent !== text) liveState.textContent = text;
    liveState.title = title;
  }

  let source = null;
  function follow() {
    source?.close();
    source = new EventSource(body.dataset.live);
    source.addEventListener("open", () => said("on", "live", "This page changes as things do."));
    source.addEventListener("page", (event) => {
      const fresh = new DOMParser().parseFromString(event.data, "text/html").body;
      children(live, fresh);
      said("on", "live", "This page changes as things do.");
      live.dispatchEvent(new CustomEvent("fresh"));
    });
    source.addEventListener("away", (event) => said("away", "away", event.data));
    source.addEventListener("error", () => {
      said("off", source.readyState === EventSource.CLOSED ? "still" : "waiting", "The server does not answer just now: this is how it was.");
    });
  }
  if (live && body.dataset.live) {
    // A browser keeps few connections to a server: who does not look needs none.
    const look = () => {
      if (document.visibilityState === "visible") follow();
      else source?.close();
    };
    look();
    document.addEventListener("visibilitychange", look);
    window.addEventListener("pagehide", () => source?.close());
    window.addEventListener("pageshow", (event) => { if (event.persisted) look(); });
  }

  // -- ages

  const steps = [[60, "s"], [60, "m"], [24, "h"], [Infinity, "d"]];
  function whole(seconds) {
    let left = Math.max(0, Math.round(seconds));
    const parts = [];
    for (const [size, unit] of steps) {
      const rest = size === Infinity ? left : left % size;
      left = size === Infinity ? 0 : Math.floor(left / size);
      parts.push(`${rest} ${unit}`);
      if (!left) break;
    }
    const shown = parts.reverse().slice(0, 2);
    return shown.length > 1 && shown[1].startsWith("0 ") ? shown[0] : shown.join(" ");
  }
  // How far this machine's clock is off, as far as the page's own time tells.
  let offset = 0;
  const sent = Date.parse(document.documentElement.dataset.at);
  if (sent) offset = sent - Date.now();
  setInterval(() => {
    const now = Date.now() + offset;
    for (const time of document.querySelectorAll("time[data-kind]")) {
      const { kind } = time.dataset;
      if (kind === "clock") continue;
      const past = (now - Date.parse(time.dateTime)) / 1000;
      const text = whole(kind === "age" ? past : -past);
      if (time.textContent !== text) time.textContent = text;
    }
  }, 1000);

  // -- what a chart says under the pointer

  document.addEventListener("pointermove", (event) => {
    const plot = event.target.closest ? event.target.closest(".plot[data-points]") : null;
    for (const own of document.querySelectorAll(".plot [data-own]")) if (own.parentElement !== plot) own.remove();
    if (!plot) return;
    const rows = JSON.parse(plot.dataset.points);
    const names = plot.dataset.names.split(",");
    const box = plot.getBoundingClientRect();
    const n = Math.min(rows.length - 1, Math.max(0, Math.round(((event.clientX - box.left) / box.width) * (rows.length - 1))));
    let cursor = plot.querySelector(".cursor");
    let readout = plot.querySelector(".readout");
    if (!cursor) {
      cursor = Object.assign(document.createElement("div"), { className: "cursor" });
      readout = Object.assign(document.createElement("div"), { className: "readout" });
      for (const own of [cursor, readout]) own.setAttribute("data-own", "");
      plot.append(cursor, readout);
    }
    const x = (n / Math.max(1, rows.length - 1)) * box.width;
    cursor.style.left = `${x}px`;
    readout.textContent = `${rows[n][0]} UTC · ${names.map((name, i) => `${name} ${rows[n][i + 1]}`).join(" · ")}`;
    const half = readout.offsetWidth / 2;
    readout.style.left = `${Math.min(Math.max(x, half - 52), Math.max(box.width - half, half - 52))}px`;
  });

  // -- keys

  const help = document.getElementById("help");
  const helpButton = document.getElementById("help-button");
  helpButton.hidden = false;
  helpButton.addEventListener("click", () => help.showModal());

  let went = -Infinity;
  function row(by) {
    const links = [...document.querySelectorAll("main .rows tbody tr, main .plain li, main .slot")]
      .map((each) => each.querySelector("a")).filter((link) => link && link.offsetParent);
    const at = links.indexOf(document.activeElement);
    const next = links[at < 0 ? (by > 0 ? 0 : links.length - 1) : at + by];
    if (next) next.focus();
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const go = event.timeStamp - went < 1500 && document.querySelector(`[data-key-go="${CSS.escape(event.key)}"]`);
    went = -Infinity;
    if (go) go.click();
    else if (event.key === "g") went = event.timeStamp;
    else if (event.key === "/") document.getElementById("jump").focus();
    else if (event.key === "?") help.showModal();
    else if (event.key === "j") row(1);
    else if (event.key === "k") row(-1);
    else if (event.key === "p") document.querySelector('[data-key-do="p"]')?.click();
    else return;
    event.preventDefault();
  });
})();
