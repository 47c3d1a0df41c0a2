// The page: what is typed goes to the worker, what it answers is shown. Nothing leaves the browser.

const find = (selector) => document.querySelector(selector);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const SHOWN = 5;
const CLOSE_ENOUGH = 0.05;

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

const demo = await (await fetch(new URL("demo.json", import.meta.url))).json();
const several = Boolean(demo.decision.thresholds);
const waiting = new Map();
let latest = 0;

// A worker made from a blob keeps to this page's policy, which lets it connect to nothing but this server;
// browsers that do not start one get it from the server.
const startWorker = () => {
  const address = new URL("worker.js", import.meta.url).href;
  const listen = (worker, onError) => {
    worker.addEventListener("message", ({ data }) => hear[data.type](data));
    worker.addEventListener("error", onError);
    return worker;
  };
  const broken = () => hear.broken({ message: "this browser does not start it" });
  const direct = () => listen(new Worker(address, { type: "module" }), broken);
  const blob = URL.createObjectURL(new Blob([`import ${JSON.stringify(address)};`], { type: "text/javascript" }));
  let started = false;
  const worker = listen(new Worker(blob, { type: "module" }), () => {
    if (started) broken();
    else current = direct();
  });
  worker.addEventListener("message", () => (started = true), { once: true });
  return worker;
};

const say = (words, kind = "") => {
  find("#state").textContent = words;
  find("#state").className = `state ${kind}`;
};

const hear = {
  progress: ({ loaded, total }) => {
    find("#progress").value = loaded / total;
    say(`Loading the model: ${(loaded / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB`);
  },
  starting: () => say("Starting the model"),
  ready: ({ check }) => {
    find("#progress").hidden = true;
    find("#classify").disabled = false;
    document.documentElement.dataset.ready = "yes";
    document.documentElement.dataset.check = JSON.stringify(check);
    const right = check.split === 0 && check.difference <= CLOSE_ENOUGH;
    if (right) {
      say("Ready. Nothing you type leaves this browser.");
      find("#checked").textContent =
        `Checked when it was opened: ${check.texts} texts give the tokens they gave in training, and ` +
        `probabilities differ by ${check.difference.toFixed(4)} at most.`;
    } else {
      say(
        `Take care: in this browser ${check.split} of ${check.texts} test texts are read otherwise than in ` +
          `training, and probabilities differ by ${check.difference.toFixed(3)}. Try another browser.`,
        "bad",
      );
    }
  },
  answer: (data) => {
    waiting.get(data.id)?.resolve(data);
    waiting.delete(data.id);
  },
  failed: (data) => {
    waiting.get(data.id)?.reject(new Error(data.message));
    waiting.delete(data.id);
  },
  broken: ({ message }) => {
    find("#progress").hidden = true;
    say(`The model cannot be started (${message}). Reload the page, or try another browser.`, "bad");
    document.documentElement.dataset.ready = "no";
  },
};

let current = startWorker();

const classify = (text) =>
  new Promise((resolve, reject) => {
    latest += 1;
    waiting.set(latest, { resolve, reject });
    current.postMessage({ id: latest, text });
  });

// What is shown of an answer

const label = (i) => element("bdi", { textContent: demo.labels[i] });

const bar = (i, p, given) => {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${100 * p}%`;
  const rail = element("span", { className: "rail" }, fill);
  rail.setAttribute("aria-hidden", "true");
  if (several) {
    const mark = element("span", { className: "mark" });
    mark.style.left = `${100 * demo.decision.thresholds[i]}%`;
    rail.append(mark);
  }
  const name = element("span", { className: "name" }, label(i));
  return element("li", { className: given ? "given" : "" }, name, element("b", { textContent: percent(p) }), rail);
};

const reviewOf = ({ confidence }) => {
  const threshold = demo.confidence_threshold;
  const target = `${Number((100 * demo.precision_target).toFixed(1))}\u00a0%`;
  const right = several ? "exactly right" : "right";
  if (threshold === null) return null;
  if (threshold > 1) return ["amber", `A person should look: no confidence reaches ${target} ${right} in this run.`];
  if (confidence >= threshold) {
    return ["good", `Nobody need look: at ${percent(threshold)} or more it is ${right} in ${target} of cases or more.`];
  }
  return ["amber", `A person should look: below ${percent(threshold)} it is ${right} less often than in ${target} of cases.`];
};

const lengthOf = ({ tokens, rows }) => {
  const { max_length: length, long_texts: way } = demo.reading;
  if (tokens <= length) return "";
  if (way === "windows") return `The text has ${tokens} tokens and was read in ${rows} overlapping windows of ${length}.`;
  const part = { head_tail: `the first and last ${length}`, truncate: `${length}` }[way];
  return `The text has ${tokens} tokens; ${part} of them were read.`;
};

const show = (told) => {
  const order = told.probabilities.map((_, i) => i).sort((a, b) => told.probabilities[b] - told.probabilities[a]);
  const names = told.given.flatMap((i, place) => (place ? [", ", label(i)] : [label(i)]));
  find("#label").replaceChildren(...(names.length ? names : ["No label"]));
  find("#confidence").textContent = several
    ? `${percent(told.confidence)} sure that this is exactly right`
    : `${percent(told.confidence)} sure`;
  const review = reviewOf(told);
  find("#review").hidden = review === null;
  if (review) [find("#review").className, find("#review").textContent] = [`review ${review[0]}`, review[1]];
  const first = Math.max(SHOWN, told.given.length);
  const bars = order.map((i) => bar(i, told.probabilities[i], told.given.includes(i)));
  find("#bars").replaceChildren(...bars.slice(0, first));
  find("#more-bars").replaceChildren(...bars.slice(first));
  find("#more").hidden = bars.length <= first;
  find("#length").textContent = lengthOf(told);
  find("#answer").hidden = false;
};

const run = async () => {
  const text = find("#text").value;
  if (!text.trim() || find("#classify").disabled) {
    find("#text").focus();
    return;
  }
  find("#classify").disabled = true;
  find("#answer").setAttribute("aria-busy", "true");
  try {
    show(await classify(text));
  } catch (error) {
    say(`This text cannot be read (${error.message}); try a shorter one.`, "bad");
  }
  find("#answer").removeAttribute("aria-busy");
  find("#classify").disabled = false;
};

find("#ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
find("#text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});
for (const words of demo.examples) {
  const button = element("button", { type: "button", textContent: words });
  button.addEventListener("click", () => {
    find("#text").value = words;
    run();
  });
  find("#examples").append(button);
}
find("#examples").hidden = demo.examples.length === 0;
find("#all-labels").replaceChildren(...demo.labels.map((_, i) => element("li", {}, label(i))));

// In the browser's console: await snugtune.classify("a text")
globalThis.snugtune = { classify, labels: demo.labels };
