"use strict";
// The review page: one text after the other, by keys or by touch. Nothing of the data ever becomes markup:
// texts and labels are put in as text.
(() => {
  const $ = (id) => document.getElementById(id);
  const told = JSON.parse($("told").textContent);
  const KEEP_MS = 60_000;
  const FOUND = 8;
  const session = (() => {
    // A tab is one place of work: loaded anew it gets back the text it had.
    let known = sessionStorage.getItem("snugtune-session");
    if (!known) {
      known = [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
      sessionStorage.setItem("snugtune-session", known);
    }
    return known;
  })();
  let who = localStorage.getItem("snugtune-who") || "";
  let item = null;
  let picked = [];
  let offered = [];
  let busy = false;
  let page = 0;
  let active = -1;

  // --- asking the server --------------------------------------------------------------------------------

  const wanted = () => ({
    reason: $("reason").value || null, label: $("label").value || null, search: $("search").value.trim(),
  });

  async function ask(name, more = {}) {
    const response = await fetch(`/review/api/${name}`, {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ who, session, ...wanted(), ...more }),
    });
    return read(response);
  }

  async function read(response) {
    if (response.status === 401) location.assign("/login?next=/review");
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) {
      const error = new Error(answer.error || "That did not work; try again.");
      error.status = response.status;
      throw error;
    }
    return answer;
  }

  async function during(work) {
    if (busy || !who) return;
    busy = true;
    document.body.classList.add("busy");
    try {
      await work();
    } catch (error) {
      say(error.status ? error.message : "The app does not answer; is it still running?", true);
      if (error.status === 409) show(await ask("next").catch(() => null));
    } finally {
      busy = false;
      document.body.classList.remove("busy");
    }
  }

  function say(sentence, bad = false) {
    $("message").textContent = sentence;
    $("message").hidden = !sentence;
    $("message").classList.toggle("bad", bad);
  }

  // --- one item -----------------------------------------------------------------------------------------

  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const percent = (p) => (p >= 0.9995 && p < 1 ? "> 99.9 %" : `${(100 * p).toFixed(p < 0.1 || p > 0.99 ? 1 : 0)} %`);

  function show(answer) {
    if (!answer) return;
    if (answer.progress) progress(answer.progress);
    if (answer.item === undefined) return;
    item = answer.item;
    $("item").hidden = item === null;
    $("empty").hidden = item !== null;
    $("other").value = "";
    suggest();
    if (item === null) return empty();
    const stands = item.decision;
    picked = stands && stands.labels ? [...stands.labels] : [...item.predicted];
    const where = item.source + (item.row === null ? "" : `, row ${(item.row + 1).toLocaleString("en")} of the data`);
    $("item-h").textContent = where;
    $("text").textContent = item.text;
    $("standing").hidden = !stands;
    if (stands) {
      $("standing").textContent = stands.kind === "skip"
        ? `${stands.who} skipped this one.`
        : `${stands.who} decided: ${stands.labels.join(", ") || "no label"}. Accepting overrules that.`;
    }
    offered = item.candidates.map(([name, p]) => ({ name, p }));
    for (const name of [...item.predicted, ...picked]) {
      if (!offered.some((one) => one.name === name)) offered.push({ name, p: null });
    }
    choices();
    scrollTo({ top: 0 });
    if (!editing()) $("item").focus({ preventScroll: true });
  }

  function empty() {
    const filtered = $("reason").value || $("label").value || $("search").value.trim();
    $("empty-h").textContent = filtered ? "Nothing left that fits the filter" : "Nothing left to review";
    $("empty-p").textContent = filtered
      ? "Clear the filter to go on with the rest."
      : $("all").textContent === "0"
        ? "The queue is empty. Upload a table under Batch and tick “into the review queue”, or start the app with --queue TABLE."
        : "Every text is decided, or somebody else is looking at it.";
  }

  function choices() {
    const list = $("choices");
    list.replaceChildren();
    offered.forEach((one, i) => {
      const row = make("li");
      const button = make("button");
      const on = picked.includes(one.name);
      button.type = "button";
      button.setAttribute("role", told.several ? "checkbox" : "radio");
      button.setAttribute("aria-checked", String(on));
      button.classList.toggle("on", on);
      const key = make("kbd", i < 9 ? String(i + 1) : "·");
      const bar = make("i");
      bar.style.width = `${100 * (one.p ?? 0)}%`;
      const name = make("bdi", one.name);
      const mark = make("span", one.p === null ? "" : percent(one.p), "p");
      if (item.predicted.includes(one.name)) name.append(make("em", "predicted"));
      button.append(key, name, mark, bar);
      button.addEventListener("click", () => pick(one.name));
      row.append(button);
      list.append(row);
    });
    const same = item.predicted.length === picked.length && picked.every((name) => item.predicted.includes(name));
    $("accept").firstElementChild.textContent = same ? "Accept" : picked.length ? `Save ${picked.length > 1 ? `${picked.length} labels` : "as"}` : "Save: no label";
    $("accept").classList.toggle("change", !same);
    if (!same && picked.length === 1) $("accept").firstElementChild.textContent = `Save as ${short(picked[0])}`;
  }

  const short = (name) => ([...name].length > 28 ? `${[...name].slice(0, 27).join("")}…` : name);

  function pick(name) {
    if (!item) return;
    if (!offered.some((one) => one.name === name)) offered.push({ name, p: null });
    if (!told.several) picked = [name];
    else if (picked.includes(name)) picked = picked.filter((one) => one !== name);
    else picked = [...picked, name];
    choices();
  }

  const accept = () => item && during(async () => {
    say("");
    show(await ask("decide", { item: item.id, labels: picked, seen: item.decision ? item.decision.id : 0 }));
    refresh();
  });
  const skip = () => item && during(async () => {
    say("");
    show(await ask("skip", { item: item.id, seen: item.decision ? item.decision.id : 0 }));
    refresh();
  });
  const undo = () => during(async () => {
    const answer = await ask("undo");
    if (answer.item) {
      show(answer);
      say("Undone; here it is again.");
    } else {
      say("There is nothing of yours to undo.");
    }
    refresh();
  });
  const next = () => during(async () => show(await ask("next")));
  const take = (id) => during(async () => {
    say("");
    show(await ask("take", { item: id }));
  });

  // --- another label ------------------------------------------------------------------------------------

  function suggest() {
    const words = $("other").value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const found = words.length
      ? told.labels.filter((name) => words.every((word) => name.toLocaleLowerCase().includes(word))).slice(0, FOUND)
      : [];
    const list = $("found");
    active = found.length ? 0 : -1;
    list.replaceChildren(...found.map((name, i) => {
      const option = make("li", name);
      option.id = `found-${i}`;
      option.setAttribute("role", "option");
      option.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        choose(name);
      });
      return option;
    }));
    if (words.length && !found.length) list.append(make("li", "No such label", "none"));
    list.hidden = !words.length;
    $("other").setAttribute("aria-expanded", String(!list.hidden));
    mark();
  }

  function mark() {
    const options = [...$("found").querySelectorAll("[role=option]")];
    options.forEach((option, i) => option.setAttribute("aria-selected", String(i === active)));
    if (active >= 0) $("other").setAttribute("aria-activedescendant", `found-${active}`);
    else $("other").removeAttribute("aria-activedescendant");
  }

  function choose(name) {
    $("other").value = "";
    suggest();
    $("other").blur();
    if (!picked.includes(name)) pick(name);
    $("item").focus({ preventScroll: true });
  }

  $("other").addEventListener("input", suggest);
  $("other").addEventListener("keydown", (event) => {
    const options = [...$("found").querySelectorAll("[role=option]")];
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (options.length) active = (active + (event.key === "ArrowDown" ? 1 : options.length - 1)) % options.length;
      mark();
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (active >= 0) choose(options[active].textContent);
    } else if (event.key === "Escape") {
      $("other").value = "";
      suggest();
      $("item").focus({ preventScroll: true });
    }
  });
  $("other").addEventListener("blur", () => { $("found").hidden = true; });

  // --- progress and the list ----------------------------------------------------------------------------

  function progress(now) {
    const share = now.items ? (100 * now.decided) / now.items : 0;
    const bar = document.querySelector(".progress");
    bar.firstElementChild.style.width = `${share}%`;
    bar.setAttribute("aria-valuenow", share.toFixed(0));
    $("decided").textContent = now.decided.toLocaleString("en");
    $("all").textContent = now.items.toLocaleString("en");
    $("left").textContent = now.skipped ? `, ${now.skipped.toLocaleString("en")} skipped` : "";
    $("people").replaceChildren(...Object.entries(now.people).map(([name, count]) => {
      const row = make("li");
      row.append(make("bdi", name), make("span", count.toLocaleString("en")));
      return row;
    }));
    const audit = now.audit;
    $("audit").textContent = audit.decided
      ? `Of ${audit.decided} confident predictions drawn at random, ${audit.kept} were right` +
        ` (95 % interval ${audit.interval.map((p) => percent(p)).join(" to ")}).`
      : "";
  }

  async function refresh() {
    if (!$("filters").open) return;
    const asked = new URLSearchParams({ search: $("search").value.trim(), page: String(page) });
    for (const name of ["state", "reason", "label"]) if ($(name).value) asked.set(name, $(name).value);
    const answer = await read(await fetch(`/review/api/items?${asked}`)).catch(() => null);
    if (!answer) return;
    $("matches").textContent = `${answer.count.toLocaleString("en")} found.`;
    $("list").replaceChildren(...answer.items.map((one) => {
      const row = make("li");
      const button = make("button");
      button.type = "button";
      const labels = one.decision && one.decision.labels ? one.decision.labels : one.predicted;
      button.append(make("bdi", labels.join(", ") || "no label"), make("span", percent(one.confidence)), make("small", one.text.slice(0, 140)));
      if (item && one.id === item.id) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => take(one.id));
      row.append(button);
      return row;
    }));
    $("before").disabled = page === 0;
    $("after").disabled = (page + 1) * 50 >= answer.count;
  }

  let waiting = 0;
  function filter() {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      page = 0;
      refresh();
      next();
    }, 250);
  }
  for (const name of ["search", "label", "reason"]) $(name).addEventListener("input", filter);
  $("state").addEventListener("input", () => { page = 0; refresh(); });
  $("clear").addEventListener("click", () => {
    for (const name of ["search", "label", "reason"]) $(name).value = "";
    filter();
  });
  $("before").addEventListener("click", () => { page -= 1; refresh(); });
  $("after").addEventListener("click", () => { page += 1; refresh(); });
  $("filters").addEventListener("toggle", refresh);

  // --- keys ---------------------------------------------------------------------------------------------

  const editing = () => {
    const at = document.activeElement;
    return at !== null && at.matches("input, select, textarea");
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || $("who").open) return;
    if (event.key === "Escape" && editing()) return document.activeElement.blur();
    if (editing()) return;
    const inside = document.activeElement !== null && document.activeElement.closest("summary, a, aside button, header button");
    if (event.key === "Enter" && inside) return;
    const keys = {
      Enter: accept, s: skip, u: undo,
      "/": () => $("other").focus(),
      f: () => { $("filters").open = true; $("search").focus(); },
      g: () => { $("guide").open = !$("guide").open; },
    };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const digit = /^[1-9]$/.test(key) ? offered[Number(key) - 1] : undefined;
    if (digit && item) pick(digit.name);
    else if (keys[key] && !(event.repeat && key !== "/")) keys[key]();
    else return;
    event.preventDefault();
  });
  $("accept").addEventListener("click", accept);
  $("skip").addEventListener("click", skip);
  $("undo").addEventListener("click", undo);
  $("undo-empty").addEventListener("click", undo);

  // --- who, and the text that is theirs -----------------------------------------------------------------

  function begin() {
    $("me").textContent = who;
    if (who) next();
    else $("who").showModal();
  }
  $("me").addEventListener("click", () => {
    $("name").value = who;
    $("who").showModal();
  });
  $("who").addEventListener("cancel", (event) => { if (!who) event.preventDefault(); });
  $("who").addEventListener("close", () => {
    who = $("name").value.trim() || who;
    if (who) localStorage.setItem("snugtune-who", who);
    begin();
  });
  for (const name of told.labels) {
    const option = make("option", name);
    option.value = name;
    $("label").append(option);
  }
  setInterval(async () => {
    if (!item || busy || document.hidden) return;
    const asked = item.id;
    const answer = await ask("keep", { item: asked }).catch(() => null);
    if (!answer || busy || !item || item.id !== asked) return;
    progress(answer.progress);
    if (!answer.kept) await during(async () => show(await ask("take", { item: asked })));
  }, KEEP_MS);
  addEventListener("pagehide", () => {
    const body = JSON.stringify({ who, session });
    navigator.sendBeacon("/review/api/release", new Blob([body], { type: "application/json" }));
  });
  addEventListener("pageshow", (event) => { if (event.persisted) begin(); });
  begin();
})();
