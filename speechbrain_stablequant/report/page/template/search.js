document.querySelectorAll("input[data-filter]").forEach((input) => {
  const rows = document.querySelectorAll(`#${input.dataset.filter} tbody tr`);
  const count = document.getElementById(`${input.dataset.filter}-count`);
  input.hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    let shown = 0;
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    });
    count.textContent = `${shown} of ${rows.length}`;
  });
});
