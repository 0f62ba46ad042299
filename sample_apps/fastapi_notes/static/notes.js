// The page: a list, an editor, and a trail of who answered. What people wrote goes in as textContent.

const $ = (id) => document.getElementById(id);
let current = null; // the note in the editor as it was read, or null for a new one
let searches = 0;

async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body ? { "content-type": "application/json" } : {},
    body: body ? JSON.stringify(body) : undefined,
    cache: "no-store",
  });
  trail(method, path, answer);
  const data = answer.status === 204 ? null : await answer.json();
  if (answer.ok) return data;
  throw Object.assign(new Error(explain(data)), { status: answer.status, data });
}

function explain(data) {
  if (!Array.isArray(data.detail)) return data.detail;
  return data.detail.map((fault) => `${fault.loc.at(-1)}: ${fault.msg}`).join("; ");
}

function trail(method, path, answer) {
  const item = element("li", "", `${method} ${path.split("?")[0]} ${answer.status} `);
  item.append(element("b", "", answer.headers.get("x-lbkit-replica") ?? "the only replica"));
  $("trail").prepend(item);
  while ($("trail").childElementCount > 4) $("trail").lastElementChild.remove();
}

// ---- the list ---------------------------------------------------------------------------------

async function list() {
  const search = ++searches;
  const { total, notes } = await call("GET", `/api/notes?${new URLSearchParams({ q: $("q").value, limit: 100 })}`);
  if (search !== searches) return; // an older search that took longer
  $("count").textContent = total > notes.length ? `${notes.length} of ${total} notes` : total === 1 ? "1 note" : `${total} notes`;
  $("list").replaceChildren(...notes.map(entry));
}

function entry(note) {
  const button = element("button", "", "");
  button.type = "button";
  if (current && note.id === current.id) button.setAttribute("aria-current", "true");
  const title = element("b", "", "");
  title.dir = "auto";
  if (note.pinned) title.append(pin());
  title.append(note.title);
  const time = element("time", "", new Date(note.updated_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
  time.dateTime = note.updated_at;
  button.append(title, element("span", "excerpt", note.body.trim() || "No text"), time);
  button.addEventListener("click", act(async () => edit(await call("GET", `/api/notes/${note.id}`))));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function pin() {
  const mark = element("span", "pin", "");
  mark.setAttribute("role", "img");
  mark.setAttribute("aria-label", "Pinned");
  return mark;
}

// ---- the editor -------------------------------------------------------------------------------

function edit(note) {
  current = note;
  $("title").value = note?.title ?? "";
  $("body").value = note?.body ?? "";
  $("pinned").checked = note?.pinned ?? false;
  $("delete").hidden = !note;
  say("");
  list().catch(fail);
}

async function save() {
  const draft = { title: $("title").value.trim(), body: $("body").value, pinned: $("pinned").checked };
  const saved = current
    ? await call("PUT", `/api/notes/${current.id}`, { ...draft, version: current.version })
    : await call("POST", "/api/notes", draft);
  edit(saved);
  say("Saved.");
}

async function remove() {
  if (!confirm(`Delete “${current.title}”?`)) return;
  await call("DELETE", `/api/notes/${current.id}`);
  edit(null);
  say("Deleted.");
}

// ---- the page ---------------------------------------------------------------------------------

function act(work) {
  return (event) => {
    event.preventDefault();
    work().catch(fail);
  };
}

function fail(error) {
  if (error.status === 409) {
    // Saving again now means: I have seen theirs, take mine.
    current = error.data.current;
    list().catch(fail);
    say(`Somebody changed this note while you wrote. Theirs is titled “${current.title}”. Save again to replace it, or open it from the list.`, true);
  } else {
    say(error.status ? error.message : "Nobody answered. Try again in a moment.", true);
  }
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").hidden = !text;
  $("message").className = bad ? "bad" : "";
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

let typing;
$("q").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => list().catch(fail), 200); });
$("search").addEventListener("submit", act(list));
$("editor").addEventListener("submit", act(save));
$("delete").addEventListener("click", act(remove));
$("new").addEventListener("click", () => { edit(null); $("title").focus(); });
edit(null);
