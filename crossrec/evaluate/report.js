"use strict";
// Shows one user at a time and lets a person search ids and titles; without it all users are shown.
(() => {
  const form = document.getElementById("controls");
  if (!form) return;
  const [search, select, previous, next, matches] = ["search", "user", "previous", "next", "matches"]
    .map((id) => document.getElementById(id));
  const users = [...select.options].map((option) => {
    const article = document.getElementById(option.value);
    return { option, article, text: article.textContent.toLowerCase() };
  });

  function show() {
    for (const user of users) user.article.hidden = user.option.value !== select.value;
    previous.disabled = select.selectedIndex <= 0;
    next.disabled = select.selectedIndex >= select.options.length - 1;
  }

  function find() {
    const wanted = search.value.trim().toLowerCase();
    const chosen = select.value;
    const found = users.filter((user) => user.text.includes(wanted));
    select.replaceChildren(...found.map((user) => user.option));
    if (found.some((user) => user.option.value === chosen)) select.value = chosen;
    else select.selectedIndex = found.length ? 0 : -1;
    matches.textContent = wanted ? `${found.length} of ${users.length} users match` : `${users.length} users`;
    show();
  }

  function step(by) {
    select.selectedIndex += by;
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
