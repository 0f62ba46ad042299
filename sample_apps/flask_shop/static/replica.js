// Says which replica answers. A page cannot read the headers it came with, so it asks /health, a request
// of its own, and reads the header that the balancer put on the answer.
const foot = document.querySelector(".replica");
const text = foot.querySelector("[data-text]");
const counts = JSON.parse(sessionStorage.getItem("replicas") ?? "{}");

function show(replica) {
  counts[replica] = (counts[replica] ?? 0) + 1;
  sessionStorage.setItem("replicas", JSON.stringify(counts));
  text.textContent = `${replica} answered just now. In this tab:`;
  foot.append(...Object.keys(counts).sort().map((name) => pill(name, name === replica)));
}

function pill(name, latest) {
  const pill = document.createElement("span");
  pill.className = latest ? "pill latest" : "pill";
  pill.textContent = `${name} ${counts[name]}×`;
  return pill;
}

async function ask() {
  const answer = await fetch(foot.dataset.health, { cache: "no-store" });
  const replica = answer.headers.get("x-lbkit-replica");
  if (replica) show(replica);
  else text.textContent = "No balancer in front: this is the only replica.";
}

ask().catch(() => { text.textContent = "Nobody answered /health."; });
