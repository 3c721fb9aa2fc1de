"use strict";
// The table of genes: sorted and searched as a whole, shown page by page. Text is inserted as text, never as markup.
(async () => {
  const ROWS = 50;
  const TITLES = { gene: "gene", log_fc: "effect", se: "se", statistic: "t", df1: "df1", df: "df", log10_p: "p",
    log10_q: "FDR", mean: "mean", status: "status" };
  const WIDE = ["se", "df1", "df", "statistic", "mean", "status"]; // hidden on narrow screens
  const SMALL_FIRST = ["gene", "se", "log10_p", "log10_q", "status"];
  const by = (id) => document.getElementById(id);
  const show = (element) => { element.hidden = false; };
  const holder = by("numbers");

  async function unpacked() {
    const packed = Uint8Array.from(atob(holder.textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const read = JSON.parse(await new Response(stream).text());
    const numbers = (text) => text.split(",").map((one) => (one === "" ? null : Number(one)));
    for (const one of read.contrasts) {
      for (const [title, text] of Object.entries(one.columns)) one.columns[title] = numbers(text);
    }
    return { ...read, mean: read.mean === null ? null : numbers(read.mean) };
  }

  if (typeof DecompressionStream === "undefined") {
    by("count").textContent = "This browser is too old for the table; see the results table that was written with the fit.";
    show(by("find"));
    return;
  }
  const data = await unpacked();
  const log10Fdr = Math.log10(Number(holder.dataset.fdr));
  const names = data.genes.map((name) => name.toLowerCase());

  // --- number formats ---

  function power(log10) { // p-values may be far below the smallest float
    if (log10 === null) return "";
    if (log10 >= -4) return (10 ** log10).toPrecision(3);
    let exponent = Math.floor(log10);
    let digits = (10 ** (log10 - exponent)).toPrecision(2);
    if (digits === "10") { digits = "1.0"; exponent += 1; }
    return `${digits}e${exponent}`.replace("-", "\u2212");
  }
  function plain(value) {
    if (value === null) return "";
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : value.toPrecision(4);
    return text.replaceAll("-", "\u2212");
  }
  function degrees(value) { return value === null ? "" : (value < 1000 ? value.toFixed(1) : Math.round(value).toLocaleString("en")); }
  const LOOK = { log10_p: power, log10_q: power, df: degrees, df1: (value) => (value === null ? "" : String(value)) };

  // --- selection and order ---

  let contrast, columns, order, found, page = 0, sorted = "log10_p", ascending = true;
  const value = {
    gene: (row) => names[contrast.gene[row]],
    status: (row) => data.words[data.status[contrast.gene[row]]],
    mean: (row) => data.mean[contrast.gene[row]],
  };
  const valueOf = (title) => value[title] || ((row) => contrast.columns[title][row]);

  function sort() { // missing values last in both directions; ties by p-value
    const values = contrast.gene.map((_, row) => valueOf(sorted)(row));
    const sign = ascending ? 1 : -1;
    order = contrast.gene.map((_, row) => row).sort((a, b) => {
      const [u, v] = [values[a], values[b]];
      if (u === null || v === null) return (u === null) - (v === null) || a - b;
      return u < v ? -sign : u > v ? sign : a - b;
    });
  }
  function search() {
    const part = by("search").value.trim().toLowerCase();
    const called = by("significant").checked;
    const q = contrast.columns.log10_q;
    found = order.filter((row) => names[contrast.gene[row]].includes(part)
      && (!called || (q[row] !== null && q[row] <= log10Fdr)));
    page = 0;
  }

  // --- the page ---

  function cell(row, title) {
    if (title === "gene") {
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = data.genes[contrast.gene[row]];
      return head;
    }
    const made = document.createElement("td");
    const text = valueOf(title)(row);
    made.className = title === "status" ? "s" : title === "log10_q" ? "n q" : "n";
    if (WIDE.includes(title)) made.classList.add("wide");
    made.textContent = title === "status" ? text : (LOOK[title] || plain)(text);
    return made;
  }
  function draw() {
    const last = Math.max(Math.ceil(found.length / ROWS) - 1, 0);
    page = Math.min(Math.max(page, 0), last);
    const rows = found.slice(page * ROWS, (page + 1) * ROWS).map((row) => {
      const line = document.createElement("tr");
      const q = contrast.columns.log10_q[row];
      line.classList.toggle("called", q !== null && q <= log10Fdr);
      line.append(...columns.map((title) => cell(row, title)));
      return line;
    });
    by("table").tBodies[0].replaceChildren(...rows);
    for (const head of by("table").tHead.rows[0].cells) {
      if (head.dataset.column === sorted) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    }
    const whole = contrast.gene.length.toLocaleString("en");
    by("count").textContent = `${found.length.toLocaleString("en")} of ${whole} genes`;
    const from = found.length ? page * ROWS + 1 : 0;
    const to = Math.min((page + 1) * ROWS, found.length);
    by("page").textContent = `${from.toLocaleString("en")} to ${to.toLocaleString("en")} of ${found.length.toLocaleString("en")}`;
    by("first").disabled = by("previous").disabled = page === 0;
    by("last").disabled = by("next").disabled = page === last;
  }
  function heads() {
    by("table").tHead.rows[0].replaceChildren(...columns.map((title) => {
      const head = document.createElement("th");
      const button = document.createElement("button");
      head.scope = "col";
      head.dataset.column = title;
      if (title !== "gene" && title !== "status") head.className = "n";
      if (WIDE.includes(title)) head.classList.add("wide");
      button.type = "button";
      button.textContent = title === "statistic" && columns.includes("df1") ? "F" : TITLES[title];
      button.addEventListener("click", () => {
        ascending = sorted === title ? !ascending : SMALL_FIRST.includes(title);
        sorted = title;
        sort(); search(); draw();
      });
      head.append(button);
      return head;
    }));
  }
  function choose(number) {
    contrast = data.contrasts[number];
    columns = ["gene", ...Object.keys(contrast.columns), ...(data.mean ? ["mean"] : []), "status"];
    if (!columns.includes(sorted)) sorted = "log10_p";
    for (const part of document.querySelectorAll(".contrast")) part.hidden = part.dataset.contrast !== String(number);
    by("table").caption.textContent = `Tests of ${contrast.name}`;
    by("genes").querySelector("h2").textContent = data.contrasts.length > 1 ? `Genes: ${contrast.name}` : "Genes";
    heads(); sort(); search(); draw();
  }

  by("contrast").addEventListener("change", (event) => choose(Number(event.target.value)));
  by("search").addEventListener("input", () => { search(); draw(); });
  by("significant").addEventListener("change", () => { search(); draw(); });
  // --- download: the rows that the search finds, p-values and FDR as base-10 logarithms ---

  function csv() {
    const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const field = (row, title) => {
      if (title === "gene") return quoted(data.genes[contrast.gene[row]]);
      const value = valueOf(title)(row);
      return value === null ? "" : quoted(String(value));
    };
    const names = { log10_p: "log10_p_value", log10_q: "log10_adj_p_value", gene: "variable", mean: "mean_expr" };
    const lines = found.map((row) => columns.map((title) => field(row, title)).join(","));
    return [columns.map((title) => names[title] || title).join(","), ...lines].join("\n") + "\n";
  }
  by("download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = `${contrast.name.replace(/[^A-Za-z0-9_.-]+/g, "_")}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  by("find").addEventListener("submit", (event) => event.preventDefault());
  for (const [id, move] of Object.entries({ first: () => 0, previous: () => page - 1, next: () => page + 1, last: () => Infinity })) {
    by(id).addEventListener("click", () => { page = move(); draw(); });
  }
  if (data.contrasts.length > 1) show(document.querySelector(".chooser"));
  show(by("find")); show(by("tablebox")); show(document.querySelector(".pager"));
  choose(Number(by("contrast").value));
  document.body.dataset.ready = "yes";
})();
