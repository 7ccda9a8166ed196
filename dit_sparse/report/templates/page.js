// Theme: the system's, light or dark; remembered where the browser allows it.
const THEMES = ["auto", "light", "dark"];
const theme = byId("theme");
const setTheme = (name) => {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  theme.textContent = `Theme: ${name}`;
  theme.value = name;
  try { localStorage.setItem("dit-sparse-theme", name); } catch { /* storage is off */ }
};
let remembered = null;
try { remembered = localStorage.getItem("dit-sparse-theme"); } catch { /* storage is off */ }
setTheme(THEMES.includes(remembered) ? remembered : "auto");
theme.addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length]));
theme.hidden = false;

const copy = byId("copy");
if (copy && navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(byId("command").textContent);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
}

// Heat maps: the cell under the pointer in words; colours of the sparse calls alone or with the dense guard.
for (const heats of all(".heats")) {
  const switches = all("[data-guard]", heats);
  for (const button of switches) button.addEventListener("click", () => {
    heats.toggleAttribute("data-guard-shown", button.dataset.guard === "with");
    for (const other of switches) other.setAttribute("aria-pressed", String(other === button));
  });
  const words = heats.querySelector("output");
  heats.addEventListener("pointerover", (event) => {
    if (event.target.matches(".cells i")) words.textContent = event.target.title;
  });
}
