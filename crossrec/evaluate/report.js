"use strict";
// Shows one user at a time and lets a person search ids and titles; without it all users are shown.
(() => {
  const form = document.getElementById("controls");
  if (!form) return;
  const [search, select, previous, next, status] = ["search", "user", "previous", "next", "matches"]
    .map((id) => document.getElementById(id));
  const users = [...select.options].map((option) => {
    const article = document.getElementById(option.value);
    return { option, article, text: article.textContent.toLowerCase() };
  });

  function show() {
    const shown = select.selectedIndex, found = select.options.length;
    for (const user of users) user.article.hidden = user.option.value !== select.value;
    // Not disabled: a button that goes dead under a finger on the keyboard loses the focus.
    previous.setAttribute("aria-disabled", shown <= 0);
    next.setAttribute("aria-disabled", shown >= found - 1);
    const among = search.value.trim() ? `${found} of ${users.length} users match` : `${found} users`;
    status.textContent = found ? `${among}; this is number ${shown + 1}.` : `${among}.`;
    fit();
  }

  function find() {
    const wanted = search.value.trim().toLowerCase();
    const chosen = select.value;
    const found = users.filter((user) => user.text.includes(wanted));
    select.replaceChildren(...found.map((user) => user.option));
    if (found.some((user) => user.option.value === chosen)) select.value = chosen;
    else select.selectedIndex = found.length ? 0 : -1;
    show();
  }

  function step(by) {
    const wanted = select.selectedIndex + by;
    if (wanted < 0 || wanted >= select.options.length) return;
    select.selectedIndex = wanted;
    show();
  }

  search.addEventListener("input", find);
  select.addEventListener("change", show);
  previous.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  find();
})();

// A table takes the keyboard's focus only where there is something to scroll to.
function fit() {
  for (const box of document.querySelectorAll(".scroll")) {
    const isWider = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    box.tabIndex = isWider ? 0 : -1;
  }
}
addEventListener("resize", fit);
document.addEventListener("toggle", fit, true);
fit();
