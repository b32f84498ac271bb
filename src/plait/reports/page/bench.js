"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const palette = ["#2f6f8f", "#b4472d", "#5b8c3e", "#8a5aa8", "#c98a1b", "#3aa39a", "#c45d8b", "#6b7280", "#4a6fd0",
    "#9b7b4f", "#2e9e63", "#a83a3a", "#5d6bb0", "#b0a13a", "#48a0c9", "#7a4f3a"];
  const methods = [...new Set(data.groups.flatMap((g) => g.rows.map((r) => r.method)))];
  const colour = (method) => palette[methods.indexOf(method) % palette.length];
  const narrow = () => window.innerWidth < 760;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let group = data.groups[0], figure = group ? group.ranked_by : Object.keys(data.figures)[0];

  const number = (value, digits) => (value === null || value === undefined ? "" : value.toFixed(digits));
  const digitsOf = (name) => (data.figures[name].factor === 100 ? 1 : 3);
  const shown = (name, value) => number(data.figures[name].factor * value, digitsOf(name));
  const range = (name, f) => `${shown(name, f.value)} (${shown(name, f.low)}–${shown(name, f.high)})`;

  function layout(height, changes) {
    const axis = { gridcolor: css("--grid"), zerolinecolor: css("--rule"), linecolor: css("--rule"), fixedrange: true,
      automargin: true };
    const own = changes || {};
    return { ...own, height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", size: narrow() ? 11 : 13,
        color: css("--ink") },
      margin: { l: 8, r: 14, t: 8, b: 40, ...(own.margin || {}) }, hovermode: "closest", dragmode: false,
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--rule"), font: { color: css("--ink") } },
      xaxis: { ...axis, ...(own.xaxis || {}) }, yaxis: { ...axis, ...(own.yaxis || {}) } };
  }

  function draw(id, traces, lay) {
    const node = at(id);
    Plotly.react(node, traces, lay, { responsive: true, displayModeBar: false });
    if (!node.dataset.listens) {
      node.dataset.listens = "yes";
      node.on("plotly_click", (event) => {
        const found = event.points[0].customdata;
        if (found && found.recipe !== null && found.recipe !== undefined) open(found.recipe, found.title);
      });
    }
  }

  const shows = (id, wanted) => { at(id).hidden = !wanted; return wanted; };

  // ---- the recipe of a point -------------------------------------------------------------------------------------
  function open(place, title) {
    at("drawer-title").textContent = title || "Recipe";
    at("drawer-text").textContent = data.recipes[place];
    at("drawer").hidden = false;
    at("drawer-note").textContent = "";
    history.replaceState(null, "", `#recipe-${place}`);
    copy();
  }
  function copied() { at("drawer-note").textContent = "Copied to the clipboard."; }
  function copy() {
    const text = at("drawer-text").textContent;
    if (navigator.clipboard && window.isSecureContext) {
      navigator.clipboard.writeText(text).then(copied, () => byHand(text));
    } else byHand(text);
  }
  function byHand(text) {  // where the clipboard is not open to scripts, as in some browsers for files
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    area.style.opacity = "0";
    document.body.append(area);
    area.select();
    let done = false;
    try { done = document.execCommand("copy"); } catch (error) { done = false; }
    area.remove();
    if (done) copied(); else at("drawer-note").textContent = "Select the text to copy it.";
  }
  at("copy").onclick = copy;
  at("close").onclick = () => { at("drawer").hidden = true; history.replaceState(null, "", "#"); };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") at("close").onclick(); });

  const settingOf = (run) => Object.entries(run.setting || {}).map(([k, v]) => `${k} ${v}`).join(", ");
  const first = (row) => ({ recipe: row.runs.length ? row.runs[0].recipe : null,
    title: row.runs.length ? `${row.method}${settingOf(row.runs[0]) ? ", " + settingOf(row.runs[0]) : ""}, ${row.runs[0].label}` : row.method });

  // ---- ranking -----------------------------------------------------------------------------------------------------
  const ordered = () => {
    const sound = group.rows.filter((r) => r.figures[figure]);
    const up = data.figures[figure].more_is_better ? 1 : -1;
    return sound.sort((a, b) => up * (b.figures[figure].value - a.figures[figure].value));
  };
  function ranking() {
    const rows = ordered(), names = rows.map((r) => r.method), factor = data.figures[figure].factor;
    const mean = { type: "scatter", mode: "markers", x: rows.map((r) => factor * r.figures[figure].value), y: names,
      error_x: { type: "data", symmetric: false, thickness: 2, width: 5, color: css("--calm"),
        array: rows.map((r) => factor * (r.figures[figure].high - r.figures[figure].value)),
        arrayminus: rows.map((r) => factor * (r.figures[figure].value - r.figures[figure].low)) },
      marker: { size: 12, color: rows.map((r, i) => (i ? css("--calm") : css("--accent"))) },
      customdata: rows.map((r) => first(r)), name: "mean",
      hovertext: rows.map((r) => `${r.method}: ${range(figure, r.figures[figure])}<br>${r.settings.join(" | ")}`),
      hoverinfo: "text" };
    const each = { type: "scatter", mode: "markers", x: [], y: [], customdata: [], hovertext: [], hoverinfo: "text",
      marker: { size: 7, symbol: "circle-open", color: css("--soft") }, name: "run" };
    rows.forEach((r) => r.runs.forEach((run) => {
      if (r.runs.length > 1 && run.figures[figure] !== undefined) {
        each.x.push(factor * run.figures[figure]); each.y.push(r.method);
        each.customdata.push({ recipe: run.recipe, title: `${r.method}, ${settingOf(run)}, ${run.label}` });
        each.hovertext.push(`${r.method}, ${run.label}: ${shown(figure, run.figures[figure])}<br>${settingOf(run)}`);
      }
    }));
    const lines = Object.entries(group.references).filter(([, f]) => f[figure] !== undefined);
    draw("p-ranking", [each, mean], layout(70 + 34 * rows.length, { showlegend: false,
      xaxis: { title: { text: data.figures[figure].title }, zeroline: false },
      yaxis: { categoryorder: "array", categoryarray: [...names].reverse(), range: [-0.6, rows.length - 0.2] },
      margin: { t: 22 },
      shapes: lines.map(([, f]) => ({ type: "line", x0: factor * f[figure], x1: factor * f[figure], yref: "paper", y0: 0, y1: 1,
        line: { color: css("--soft"), width: 1, dash: "dot" } })),
      annotations: lines.map(([name, f], i) => ({ x: factor * f[figure], y: 1, yref: "paper", yanchor: "bottom", showarrow: false,
        xanchor: i ? "left" : "right", text: name, font: { size: 11, color: css("--soft") } })) }));
    const meaning = data.figures[figure].meaning;
    at("n-ranking").textContent = `${meaning[0].toUpperCase()}${meaning.slice(1)}. Bars are 95 % intervals over the examples`
      + (data.subsets ? " and the subsets" : "")
      + (each.x.length ? `; rings are single ${data.subsets ? "subsets" : "seeds"}` : "")
      + ". Click a point for the recipe that made it.";
  }

  // ---- table -------------------------------------------------------------------------------------------------------
  function element(name, text, parent, kind) {
    const node = document.createElement(name);
    if (text !== undefined && text !== null) node.textContent = text;
    if (kind) node.className = kind;
    parent.append(node);
    return node;
  }
  function table() {
    const node = at("table"), figures = Object.keys(data.figures).filter((f) => group.rows.some((r) => r.figures[f]));
    node.replaceChildren();
    const head = element("tr", null, element("thead", null, node)), body = element("tbody", null, node);
    ["#", "method", "setting", ...figures.map((f) => data.figures[f].title), "p against best", "merge s", "search s", "recipe"]
      .forEach((t) => element("th", t, head));
    group.rows.forEach((row) => {
      const line = element("tr", null, body);
      element("td", row.rank, line);
      element("td", row.method, line);
      if (row.error) { element("td", row.error, line, "error").colSpan = figures.length + 5; return; }
      element("td", row.settings.join(" | "), line);
      figures.forEach((f) => {
        const cell = element("td", row.figures[f] ? shown(f, row.figures[f].value) : "", line);
        if (row.figures[f]) element("small", ` ${shown(f, row.figures[f].low)}–${shown(f, row.figures[f].high)}`, cell);
      });
      element("td", number(row.p, 3), line);
      element("td", number(row.cost.merge, 1), line);
      element("td", number(row.cost.search, 0), line);
      const cell = element("td", null, line);
      row.runs.slice(0, 6).forEach((run) => {
        if (run.recipe === null) return;
        const button = element("button", run.label.split(",")[0], cell);
        button.type = "button";
        button.title = run.label;
        button.onclick = () => open(run.recipe, `${row.method}, ${run.label}`);
      });
    });
  }

  // ---- tasks, cost, sweeps -----------------------------------------------------------------------------------------
  function tasks() {
    const rows = group.rows.filter((r) => Object.keys(r.tasks).length).slice().reverse();
    if (!shows("s-tasks", rows.length > 0)) return;
    const z = rows.map((r) => group.tasks.map((t) => (r.tasks[t] === undefined ? null : 100 * r.tasks[t])));
    draw("p-tasks", [{ type: "heatmap", z, x: group.tasks, y: rows.map((r) => r.method), 
      colorscale: [[0, "#f4e6d7"], [0.5, "#a9cbd6"], [1, "#1f5f7f"]], zmin: 0, zmax: 105, xgap: 2, ygap: 2, showscale: !narrow(), colorbar: { thickness: 12, outlinewidth: 0 },
      text: z.map((line) => line.map((v) => (v === null ? "" : v.toFixed(0)))), texttemplate: "%{text}",
      customdata: rows.map((r) => group.tasks.map(() => first(r))),
      hovertemplate: "%{y} on %{x}: %{z:.1f}<extra></extra>" }],
    layout(90 + 28 * rows.length, { xaxis: { tickangle: -35, showgrid: false }, yaxis: { showgrid: false } }));
    at("n-tasks").textContent = "Score on each task as a percentage of the task's own expert, mean over the runs.";
  }
  function cost() {
    const rows = group.rows.filter((r) => r.figures[figure] && r.cost.merge !== null);
    if (!shows("s-cost", rows.length > 0)) return;
    const factor = data.figures[figure].factor;
    const trace = (key, symbol, name) => ({ type: "scatter", mode: key === "merge" ? "markers+text" : "markers", name,
      text: rows.map((r) => r.method), textposition: "top center", textfont: { size: 10 }, cliponaxis: false,
      x: rows.map((r) => Math.max(0.01, r.cost[key])), y: rows.map((r) => factor * r.figures[figure].value),
      marker: { size: 12, symbol, color: rows.map((r) => colour(r.method)) }, customdata: rows.map(first),
      hovertext: rows.map((r) => `${r.method}: ${shown(figure, r.figures[figure].value)}, ${number(r.cost[key], 1)} s`),
      hoverinfo: "text" });
    draw("p-cost", [trace("merge", "circle", "one merge"), trace("search", "diamond-open", "the search")],
      layout(360, { xaxis: { type: "log", title: { text: "seconds" } }, yaxis: { title: { text: data.figures[figure].title } },
        legend: { orientation: "h", y: 1.1, x: 0 }, margin: { t: 30 } }));
  }
  function sweeps() {
    if (!shows("s-sweeps", group.sweeps.length > 0)) return;
    const seen = new Set();
    const traces = group.sweeps.map((line) => {
      const fresh = !seen.has(line.method);
      seen.add(line.method);
      const label = `${line.method}${line.rest ? ", " + line.rest : ""}, ${line.where}`;
      return { type: "scatter", mode: "lines+markers", name: line.method, legendgroup: line.method, showlegend: fresh,
        x: line.points.map((p) => p.x), y: line.points.map((p) => (p.y === null ? null : 100 * p.y)),
        line: { color: colour(line.method), width: 1.5 },
        marker: { color: colour(line.method), size: line.points.map((p) => (p.chosen ? 11 : 6)) },
        customdata: line.points.map((p) => ({ recipe: p.recipe, title: `${label}, ${line.along} ${p.x}` })),
        hovertext: line.points.map((p) => `${label}<br>${line.along} ${p.x}: ${p.y === null ? "failed" : (100 * p.y).toFixed(1)}`),
        hoverinfo: "text" };
    });
    draw("p-sweeps", traces, layout(narrow() ? 440 : 360, { xaxis: { title: { text: "coefficient" } },
      yaxis: { title: { text: "validation" } }, legend: { orientation: "h", y: -0.3, x: 0, font: { size: 11 } },
      margin: { b: 100 } }));
    at("n-sweeps").textContent = `On validation, by ${data.chosen_by}; the large points were chosen and reported on test.`;
  }

  // ---- landscape and layers ----------------------------------------------------------------------------------------
  function landscape() {
    const plane = data.landscape;
    if (!shows("s-lines", plane !== null && plane !== undefined) | !shows("s-plane", Boolean(plane))) return;
    const traces = plane.lines.flatMap((line, i) => plane.tasks.map((task, j) => ({ type: "scatter", mode: "lines+markers",
      name: `${line.name}: ${task}`, x: line.t, y: line.points.map((p) => p.losses[task]),
      line: { color: palette[i], dash: j ? "dot" : "solid" }, marker: { size: 6 },
      customdata: line.points.map((p) => ({ recipe: p.recipe, title: `${line.name}` })),
      hovertemplate: `${line.name}, ${task}<br>t %{x}: %{y:.3f}<extra></extra>` })));
    draw("p-lines", traces, layout(narrow() ? 480 : 420, { xaxis: { title: { text: "0: first model, 1: second model" } },
      yaxis: { title: { text: "loss" } }, legend: { orientation: "h", y: -0.2, x: 0, font: { size: 11 } }, margin: { b: 120 } }));
    at("n-lines").textContent = `Loss on validation of both experts' tasks (${plane.tasks.join(", ")}).`;
    const z = plane.values.map((b) => plane.values.map((a) => {
      const found = plane.points.find((p) => p.a === a && p.b === b);
      return found ? found.mean : null;
    }));
    const places = plane.values.map((b) => plane.values.map((a) => {
      const found = plane.points.find((p) => p.a === a && p.b === b);
      return { recipe: found ? found.recipe : null, title: `base + ${a} × ${plane.experts[0]} + ${b} × ${plane.experts[1]}` };
    }));
    const dots = { type: "scatter", mode: "markers+text", x: [0, 1, 0], y: [0, 0, 1], text: ["base", plane.experts[0], plane.experts[1]],
      textposition: ["top right", "top center", "top right"], marker: { size: 9, color: "#ffffff", line: { color: "#1d2433", width: 2 } },
      textfont: { color: "#ffffff", size: 12 }, hoverinfo: "skip", showlegend: false };
    draw("p-plane", [{ type: "heatmap", zsmooth: "best", x: plane.values, y: plane.values, z, colorscale: "Viridis",
      reversescale: true, colorbar: { thickness: 12, outlinewidth: 0 }, customdata: places, showscale: !narrow(),
      hovertemplate: "a %{x}, b %{y}: loss %{z:.3f}<extra></extra>" }, dots],
    layout(420, { xaxis: { title: { text: `× ${plane.experts[0]}` }, showgrid: false, zeroline: false },
      yaxis: { title: { text: `× ${plane.experts[1]}` }, showgrid: false, zeroline: false, scaleanchor: narrow() ? undefined : "x",
        constrain: "domain" } }));
    at("n-plane").textContent = "Mean of the two tasks' losses at base + a·τ₁ + b·τ₂; brighter is better.";
  }
  function layers() {
    const found = data.layers;
    if (!shows("s-norms", Boolean(found)) | !shows("s-conflict", Boolean(found) && Object.keys(found.conflict).length > 0)) return;
    draw("p-norms", Object.entries(found.norms).map(([name, values], i) => ({ type: "scatter", mode: "lines+markers", name,
      x: found.layers, y: values.map((v) => (v === null ? null : 100 * v)), line: { color: palette[i % palette.length] },
      hovertemplate: `${name}, layer %{x}: %{y:.2f} %<extra></extra>` })),
    layout(360, { xaxis: { title: { text: "layer" }, type: "category" }, yaxis: { title: { text: "% of the base's norm" }, rangemode: "tozero" },
      legend: { orientation: "h", y: -0.25, x: 0, font: { size: 11 } }, margin: { b: 90 } }));
    const pairs = Object.keys(found.conflict);
    draw("p-conflict", [{ type: "heatmap", x: found.layers, y: pairs, colorscale: "Cividis", xgap: 1, ygap: 1,
      z: pairs.map((p) => found.conflict[p].map((v) => (v === null ? null : 100 * v))), showscale: !narrow(),
      colorbar: { thickness: 12, outlinewidth: 0, ticksuffix: " %" },
      hovertemplate: "%{y}, layer %{x}: %{z:.1f} %<extra></extra>" }],
    layout(Math.max(260, 70 + 18 * pairs.length), { xaxis: { title: { text: "layer" }, type: "category", showgrid: false },
      yaxis: { showgrid: false, tickfont: { size: narrow() ? 9 : 11 } } }));
  }

  // ---- words -------------------------------------------------------------------------------------------------------
  function words() {
    const pools = data.pools;
    at("about").textContent = data.description
      || [...new Set(pools.map((p) => (p.description || p.arm).replace(/\.$/, "")))].join("; ")
        + (pools.length > 1 ? `; seeds ${[...new Set(pools.map((p) => p.seed))].join(" and ")}.` : ".");
    const rows = ordered(), best = rows[0], plain = group.rows.find((r) => r.method === "linear");
    let text = "";
    if (best) text = `${group.label}: ${best.method} is first with ${range(figure, best.figures[figure])} ${data.figures[figure].title.replace("% ", "% ")}.`;
    if (best && plain && plain !== best && plain.figures[figure]) text += ` Plain averaging: ${range(figure, plain.figures[figure])}.`;
    const failed = group.rows.filter((r) => r.error).length;
    if (failed) text += ` ${failed} of ${group.rows.length} methods failed.`;
    at("summary").textContent = text;
    const notes = ["Settings are chosen on validation and reported on test; a grid whose end was best was continued.",
      `Intervals and p-values resample the examples within each task, ${data.bootstrap} draws, the same for every method`
        + (data.subsets ? "; those of several subsets also resample the subsets." : "; they do not say how another training seed would come out."),
      "p against best: paired permutation test on the examples, adjusted for the number of comparisons (Holm).",
      ...Object.values(data.figures).map((f) => `${f.title}: ${f.meaning}.`),
      ...pools.map((p) => `${p.arm}, seed ${p.seed}: ${p.experts.join(", ")} (content ${p.digest.slice(0, 12)}).`)];
    at("notes").replaceChildren();
    notes.forEach((n) => element("li", n, at("notes")));
  }

  function all() { words(); ranking(); table(); tasks(); cost(); sweeps(); landscape(); layers(); }

  data.groups.forEach((g, i) => { element("option", g.label, at("group")).value = i; });
  at("group-label").hidden = data.groups.length < 2;
  Object.entries(data.figures).forEach(([name, f]) => { element("option", f.title, at("figure")).value = name; });
  at("figure").value = figure;
  at("group").onchange = (event) => { group = data.groups[Number(event.target.value)]; all(); };
  at("figure").onchange = (event) => { figure = event.target.value; all(); };
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  let width = narrow();
  window.addEventListener("resize", () => { if (narrow() !== width) { width = narrow(); all(); } });
  all();
  const asked = /^#recipe-(\d+)$/.exec(location.hash);
  if (asked && data.recipes[Number(asked[1])] !== undefined) open(Number(asked[1]), "Recipe");
  document.body.dataset.ready = "yes";
})();
