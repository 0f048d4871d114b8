// The page of one machine: a terminal, buttons and figures over one WebSocket (emu/serve/viewer.py says what goes there).

import { Chart, shown } from "./chart.js";

const LARGEST_INPUT = 64 * 1024;        // bytes typed at once; a paste may be longer
const RECONNECT_MS = 1500;
const MESSAGE_MS = 6000;
const ACTIONS = ["start", "pause", "snapshot", "restore", "fork", "end"];
const KEYS = { Esc: "\x1b", Tab: "\t", "^C": "\x03", "^D": "\x04", "↑": "\x1b[A", "↓": "\x1b[B", "←": "\x1b[D", "→": "\x1b[C" };
const THEMES = {
  dark: { background: "#14171a", foreground: "#e4e7e9", cursor: "#6fc3a8", selectionBackground: "#3f5c66" },
  light: {
    background: "#fbfaf7", foreground: "#22262a", cursor: "#23614f", cursorAccent: "#fbfaf7", selectionBackground: "#bfd6cf",
    black: "#22262a", red: "#a1260d", green: "#1a6b2f", yellow: "#7a5b00", blue: "#1f4fa3", magenta: "#852c80",
    cyan: "#0b6a78", white: "#6f7377", brightBlack: "#5b6065", brightRed: "#b3341a", brightGreen: "#24823c",
    brightYellow: "#8d6a00", brightBlue: "#2b62c4", brightMagenta: "#9c3a96", brightCyan: "#107f8f", brightWhite: "#3c4043",
  },
};

const element = (id) => document.getElementById(id);
const number = new URLSearchParams(location.search).get("machine") || "1";
const light = matchMedia("(prefers-color-scheme: light)");
const chart = new Chart(element("chart"), element("legend"), element("peak"));
const term = new Terminal({
  scrollback: 5000, fontSize: innerWidth < 500 ? 12 : 14, theme: light.matches ? THEMES.light : THEMES.dark,
  fontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace",
});
const fit = new FitAddon.FitAddon();
let socket, tab, messageTimer, asked = "";

// -- the terminal -----------------------------------------------------------------------------------------------------

term.loadAddon(fit);
term.open(element("terminal"));
term.onData((text) => type(new TextEncoder().encode(text)));
term.onBinary((text) => type(Uint8Array.from(text, (char) => char.charCodeAt(0))));
light.addEventListener("change", () => {
  term.options.theme = light.matches ? THEMES.light : THEMES.dark;
  chart.draw();
});

// A program may ask the terminal something: where the cursor is, what it can do. Output that is shown once more must not
// be answered once more, nor by everybody who looks: the program would take that for something typed.
let old = 0, answers = false;
const silent = () => old > 0 || !answers;
for (const query of [
  { final: "n" }, { prefix: "?", final: "n" }, { final: "c" }, { prefix: ">", final: "c" }, { prefix: ">", final: "q" },
  { intermediates: "$", final: "p" }, { prefix: "?", intermediates: "$", final: "p" },
]) term.parser.registerCsiHandler(query, silent);
term.parser.registerDcsHandler({ intermediates: "$", final: "q" }, silent);
for (const code of [4, 10, 11, 12]) term.parser.registerOscHandler(code, (text) => text.includes("?") && silent());

function show(bytes) {
  const before = Math.min(coming, bytes.length);
  coming -= before;
  for (const part of [bytes.subarray(0, before), bytes.subarray(before)]) {
    if (part.length) term.write(part, () => {
      old = Math.max(old - part.length, 0);
      say({ took: part.length });
    });
  }
}

let coming = 0;                         // of the bytes that come next, so many are old

function type(bytes) {
  if (socket?.readyState !== WebSocket.OPEN) return;
  for (let at = 0; at < bytes.length; at += LARGEST_INPUT) socket.send(bytes.subarray(at, at + LARGEST_INPUT));
}

// What we have room for; the machine's console is as large as all who see it have room for, which we are told.
function tellSize() {
  const room = fit.proposeDimensions();
  if (!room || !room.cols || !room.rows) return;
  const text = JSON.stringify({ size: [room.cols, room.rows] });
  if (text !== asked && socket?.readyState === WebSocket.OPEN) socket.send(asked = text);
}

let resizing;
new ResizeObserver(() => {
  clearTimeout(resizing);
  resizing = setTimeout(tellSize, 100);
}).observe(element("screen"));

// -- the connection ---------------------------------------------------------------------------------------------------

function say(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function connect() {
  const place = new URL(`socket?machine=${encodeURIComponent(number)}`, location.href);
  place.protocol = "ws:";
  socket = new WebSocket(place);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    asked = "";
    tellSize();
  };
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") return handlers[JSON.parse(data).kind]?.(JSON.parse(data));
    show(new Uint8Array(data));
  };
  socket.onclose = () => {
    if (ended) return;
    setStatus("disconnected");
    setTimeout(connect, RECONNECT_MS);
  };
}

let ended = false;
const handlers = {
  state, figures, done,
  screen({ missed, old: size }) {
    coming = size;
    // CAN ends a sequence that was cut off, RIS resets the terminal: in their place among what is being written
    term.write("\x18\x1bc" + (missed ? `\x1b[2m[${shown(missed)} bytes were too fast to be shown]\x1b[0m\r\n` : ""), () => { old = size; });
  },
  error({ message: text }) {
    tab?.close();
    tab = undefined;
    message(text, false);
  },
  ended() {
    ended = true;
    setStatus("ended");
    socket.close();
  },
};

// -- buttons and state ------------------------------------------------------------------------------------------------

for (const name of ACTIONS) {
  element(name).onclick = () => {
    if (name === "fork") tab = window.open("", "_blank");       // now, or the browser takes it for an advertisement
    say({ do: name, name: name === "restore" ? element("snapshots").value : "" });
    if (name !== "fork") term.focus();
  };
}
element("machines").onchange = ({ target }) => location.assign(`?machine=${target.value}`);

function setStatus(status, detail = "") {
  element("status").textContent = status;
  element("status").dataset.status = status;
  element("status").title = detail;
  document.title = `${number}: ${status}`;
  const can = {
    start: ["paused", "stopped"], pause: ["running"], snapshot: ["running", "paused"], fork: ["running", "paused"],
    restore: ["running", "paused", "stopped"], end: ["running", "paused", "stopped"],
  };
  for (const name of ACTIONS) element(name).disabled = !can[name].includes(status);
}

// "machine-1-20260131-235959" as a person reads it; of snapshots of the same second the others have a number behind.
function named(name) {
  const [, machine, day, time, more = ""] = name.split("-");
  return `${machine}: ${day.slice(4, 6)}-${day.slice(6)} ${time.match(/../g).join(":")} ${more}`;
}

function options(select, rows, chosen) {
  if (document.activeElement === select && select.options.length === rows.length) return;
  select.replaceChildren(...rows.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function state({ status, detail, machines, snapshots, size, viewers, answers: isFirst }) {
  answers = isFirst;
  setStatus(status, detail);
  if (status === "stopped") message(detail, false);
  options(element("machines"), machines.map(([each, how]) => [`${each}`, `${each}` === number ? `Machine ${each}` : `Machine ${each}, ${how}`]), number);
  const chosen = element("snapshots").value;
  const rows = snapshots.map((name) => [name, named(name)]);
  options(element("snapshots"), rows.length ? rows : [["", "no snapshot"]], chosen);
  element("snapshots").disabled = !snapshots.length;
  element("restore").disabled ||= !snapshots.length;
  element("end").disabled ||= machines.length < 2;
  element("screen").title = viewers > 1 ? `${viewers} see this machine` : "";
  if (size && (size[0] !== term.cols || size[1] !== term.rows)) term.resize(...size);
}

function done({ do: name, result }) {
  if (name === "fork") {
    const place = `?machine=${result}`;
    if (tab) tab.location = new URL(place, location.href);
    else message(`Machine ${result} is there; the browser did not open a tab for it`, true);
    tab = undefined;
  } else if (name === "snapshot") {
    element("snapshots").value = result;
    message(`Saved as ${result}`, true);
  } else if (name === "restore") message("Restored; Enter shows a prompt", true);
}

function message(text, isGood) {
  clearTimeout(messageTimer);
  element("message").textContent = text;
  element("message").className = isGood ? "good" : "";
  element("message").hidden = false;
  messageTimer = setTimeout(() => { element("message").hidden = true; }, MESSAGE_MS);
}

// -- figures ----------------------------------------------------------------------------------------------------------

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

function figures(now) {
  for (const part of ["guest", "host", "idle"]) {
    element(part).textContent = percent(now[part]);
    element("bar").querySelector(`.${part}`).style.width = percent(now[part]);
  }
  element("interrupts").textContent = shown(now.interrupts);
  element("private").textContent = mebibytes(now.private);
  element("shared").textContent = mebibytes(now.shared);
  chart.add(now.kinds);
  element("handlers").replaceChildren(...now.handlers.map(([kind, handler, rate]) => {
    const row = document.createElement("tr");
    row.append(...[kind, handler, shown(rate)].map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
}

// -- keys that a phone has not ----------------------------------------------------------------------------------------

for (const [name, keys] of Object.entries(KEYS)) {
  const button = document.createElement("button");
  button.textContent = name;
  button.onpointerdown = (event) => event.preventDefault();     // the terminal keeps the focus, and the keyboard stays
  button.onclick = () => type(new TextEncoder().encode(keys));
  element("keys").append(button);
}

connect();
term.focus();
window.terminal = term;                // for the browser's own console, and for tests
