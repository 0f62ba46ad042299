// The page: one connection in, the log and the people out. All text from others goes in as textContent.

const $ = (id) => document.getElementById(id);
const room = { name: "", id: "", transport: "socket", last: null, connection: null, timer: null, delay: 500 };

// ---- which replica is which -------------------------------------------------------------------
// An instance knows its own id and no more; the balancer puts its name for it on every answer. So each
// answer to /whoami teaches us one pair. Asked as often as there are replicas, a few times each at most.

const names = new Map();
let questions = 0;

async function whoami() {
  const answer = await fetch("/whoami", { cache: "no-store" });
  const { instance } = await answer.json();
  const replica = answer.headers.get("x-lbkit-replica");
  names.set(instance, replica ?? "the only replica");
  $("replica").textContent = replica ? `${replica} answered just now.` : "No balancer in front: one replica.";
  for (const pill of document.querySelectorAll(".via")) label(pill);
}

function label(pill) {
  const instance = pill.dataset.instance;
  pill.textContent = names.get(instance) ?? instance;
  if (!names.has(instance) && questions < 12) {
    questions += 1;
    whoami().catch(() => {});
  }
}

function via(instance) {
  const pill = element("span", "via", "");
  pill.title = `instance ${instance}`;
  pill.dataset.instance = instance;
  return pill;
}

// ---- one connection, either way ---------------------------------------------------------------

function connect() {
  state("Connecting");
  if (room.transport === "socket") openSocket();
  else openEvents();
}

function query() {
  const pairs = new URLSearchParams({ name: room.name });
  if (room.last !== null) pairs.set("last", room.last);
  return pairs;
}

function openSocket() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(`${scheme}//${location.host}/rooms/${room.id}/socket?${query()}`);
  socket.onmessage = (message) => receive(JSON.parse(message.data));
  socket.onclose = (end) => {
    if (room.connection !== socket) return;
    if (end.code === 1008) { leave(end.reason); return; }
    // A websocket does not come back by itself. It resumes where it was: `last` is in the query.
    state("Connection lost, coming back");
    room.timer = setTimeout(connect, room.delay);
    room.delay = Math.min(room.delay * 2, 8000);
  };
  room.connection = socket;
}

function openEvents() {
  const source = new EventSource(`/rooms/${room.id}/events?${query()}`);
  source.addEventListener("hello", (message) => receive(JSON.parse(message.data)));
  source.onmessage = (message) => receive(JSON.parse(message.data));
  // An event source comes back by itself, with Last-Event-ID, unless it was refused.
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) { state("Connection lost, coming back"); return; }
    source.close();
    if (room.connection === source) room.timer = setTimeout(connect, 3000);
  };
  room.connection = source;
}

async function say(text) {
  if (room.transport === "socket") {
    if (room.connection.readyState !== WebSocket.OPEN) throw new Error("Not connected: try again in a moment.");
    room.connection.send(text);
    return;
  }
  const answer = await fetch(`/rooms/${room.id}/messages`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ name: room.name, text }),
  });
  if (!answer.ok) throw new Error((await answer.json()).error);
}

// ---- what comes in ----------------------------------------------------------------------------

function receive(event) {
  if (event.kind === "hello") {
    room.delay = 500;
    state("Your connection is held by", event.via);
    refreshPeople();
  } else if (event.kind === "refused") {
    complain(event.text);
  } else {
    if (room.last !== null && event.id <= room.last) return;
    room.last = event.id;
    show(event);
    if (event.kind !== "message") refreshPeople();
  }
}

function show(event) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  log.append(event.kind === "message" ? bubble(event) : note(event));
  while (log.childElementCount > 500) log.firstElementChild.remove();
  if (atEnd || event.author === room.name) log.scrollTop = log.scrollHeight;
}

function bubble(event) {
  const item = element("li", event.author === room.name ? "mine" : "", "");
  const meta = element("div", "meta", "");
  const author = element("b", "", event.author);
  author.dir = "auto";
  const pill = via(event.via);
  meta.append(author, clock(event.at), pill);
  label(pill);
  const text = element("div", "bubble", event.text);
  text.dir = "auto";
  item.append(meta, text);
  return item;
}

function note(event) {
  const item = element("li", "note", "");
  const author = element("bdi", "", event.author);
  item.append(author, event.kind === "joined" ? " came in" : " left");
  return item;
}

function clock(at) {
  const time = element("time", "", new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = new Date(at * 1000).toISOString();
  return time;
}

async function refreshPeople() {
  const answer = await fetch(`/rooms/${room.id}/people`, { cache: "no-store" });
  if (!answer.ok) return;
  $("people").replaceChildren(...(await answer.json()).map((person) => {
    const item = element("li", "", "");
    const pill = via(person.via);
    item.append(element("bdi", "", person.name), pill);
    label(pill);
    return item;
  }));
}

// ---- the page ---------------------------------------------------------------------------------

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function state(text, instance) {
  const line = $("state");
  line.textContent = text + (instance ? " " : "");
  line.classList.toggle("live", Boolean(instance));
  if (!instance) return;
  const pill = via(instance);
  line.append(pill);
  label(pill);
}

function complain(text) {
  $("refused").textContent = text;
  $("refused").hidden = !text;
}

function disconnect() {
  clearTimeout(room.timer);
  const connection = room.connection;
  room.connection = null;
  connection?.close();
}

function leave(reason) {
  disconnect();
  $("inside").hidden = true;
  $("door").hidden = false;
  state(reason || "Not connected");
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const transport = document.querySelector("input[name=transport]:checked").value;
  Object.assign(room, { name: $("name").value.trim(), id: $("room").value, transport, last: null, delay: 500 });
  localStorage.setItem("name", room.name);
  $("log").replaceChildren();
  $("title").textContent = room.id;
  $("door").hidden = true;
  $("inside").hidden = false;
  complain("");
  connect();
  $("text").focus();
});

$("composer").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("text").value;
  complain("");
  try {
    await say(text);
    $("text").value = "";
  } catch (error) {
    complain(error.message);
  }
});

$("leave").addEventListener("click", () => leave());

// A page that is kept for the back button leaves the room, and resumes when it is shown again.
addEventListener("pagehide", disconnect);
addEventListener("pageshow", (event) => { if (event.persisted && !$("inside").hidden) connect(); });

$("name").value = localStorage.getItem("name") ?? "";
whoami().catch(() => { $("replica").textContent = "Nobody answered /whoami."; });
