"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const say = text => { document.getElementById("said").textContent = text; };

  // Light and dark
  const theme = document.getElementById("theme");
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : preferred.matches;
  const showTheme = () => {
    theme.setAttribute("aria-pressed", isDark());
    drawn.forEach(draw);
  };
  const remember = name => { try { localStorage.setItem("geexp-theme", name); } catch { /* not allowed */ } };
  const remembered = () => { try { return localStorage.getItem("geexp-theme"); } catch { return null; } };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    showTheme();
  });
  preferred.addEventListener("change", showTheme);

  // Tables: ascending, descending, and the original order; cells without a value are always last
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const compare = (column, sign) => (a, b) => {
    const [s, t] = [valueOf(a, column), valueOf(b, column)];
    if (s === "" || t === "") return (s === "") - (t === "");
    const difference = s.replaceAll(",", "") - t.replaceAll(",", "");
    return sign * (isNaN(difference) ? s.localeCompare(t, "en", { numeric: true }) : difference);
  };
  for (const table of all("table[data-sortable]")) {
    const body = table.tBodies[0];
    const first = [...body.rows];
    for (const head of all("th[aria-sort]", table)) {
      head.querySelector("button").addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
        all("th[aria-sort]", table).forEach(other => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", next);
        const rows = [...first];
        if (next !== "none") rows.sort(compare(Number(head.dataset.column), next === "ascending" ? 1 : -1));
        body.append(...rows);
        say(next === "none" ? "in the original order" : `sorted by ${head.textContent}, ${next}`);
      });
    }
  }

  // Show only runs that contain all words
  const filter = document.getElementById("filter");
  filter?.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    const rows = [...document.getElementById("all-runs").tBodies[0].rows];
    for (const row of rows) {
      const text = `${row.textContent} ${row.cells[0].dataset.value}`.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      count += !row.hidden;
    }
    document.getElementById("shown").textContent = words.length ? `${count} of ${rows.length}` : "";
  });

  // Commands
  const copy = async text => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  document.addEventListener("click", async event => {
    const button = event.target.closest(".copy");
    if (!button) return;
    await copy(button.dataset.copy);
    button.focus();
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1500);
    say("copied");
  });

  // A link to something in closed details opens them
  const unfold = hash => {
    for (let at = document.getElementById(hash.slice(1)); at; at = at.parentElement) {
      if (at.tagName === "DETAILS") at.open = true;
    }
  };
  document.addEventListener("click", event => unfold(event.target.closest("a")?.hash ?? ""));
  unfold(location.hash);

  // Curves, drawn when they come into sight
  const settings = JSON.parse(document.getElementById("curve-data").textContent);
  const drawn = new Set();
  const hidden = settings.map(() => new Set());
  const colour = name => {
    const probe = document.createElement("span");
    probe.style.color = name;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const countOf = number => settings[number].groups.reduce((sum, group) => sum + group.curves.length, 0);
  const traces = (number, thin) => settings[number].groups.flatMap((group, place) => {
    const shade = colour(group.colour);
    return group.curves.flatMap(curve => [["train", ""], ["val", "2"]].map(([split, axis]) => ({
      type: "scatter", mode: "lines+markers", x: curve.epoch, y: curve[split], xaxis: `x${axis}`, yaxis: `y${axis}`,
      name: group.label, showlegend: false, visible: !hidden[number].has(place),
      line: { color: shade, dash: group.dash, width: thin ? 1.2 : 1.8 },
      marker: { color: shade, symbol: group.symbol, size: thin ? 5 : 7, maxdisplayed: 12 },
      hovertemplate: `${thin ? "epoch %{x}: " : ""}%{y:.2f} %<extra>${group.label}, ${curve.name}</extra>`,
    })));
  });
  const draw = plot => {
    const number = Number(plot.dataset.setting);
    const [text, quiet, rule, page] = ["text", "quiet", "rule", "page"].map(name => colour(`var(--${name})`));
    const many = countOf(number) > 12;
    const font = { size: 12.5, color: quiet };
    const axis = { gridcolor: rule, linecolor: quiet, zeroline: false, ticks: "outside", tickcolor: quiet, automargin: true };
    const epochs = {
      ...axis, title: { text: "epoch", font, standoff: 6 }, showgrid: false, unifiedhovertitle: { text: "epoch %{x}" },
    };
    const title = (label, x) => ({
      text: label, x, y: 1.02, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false,
      font: { size: 13, color: text },
    });
    const errors = settings[number].range ? { range: [...settings[number].range] } : { rangemode: "tozero" };
    drawn.add(plot);
    return Plotly.react(plot, traces(number, many), {
      margin: { l: 52, r: 8, t: 34, b: 44 }, paper_bgcolor: page, plot_bgcolor: page,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: quiet },
      uirevision: "kept", hovermode: many ? "closest" : "x unified",
      hoverlabel: { bgcolor: page, bordercolor: quiet, font: { color: text }, namelength: 60 },
      annotations: [title("training images, augmented", 0), title("validation images", 0.52)],
      xaxis: { ...epochs, domain: [0, 0.48] },
      xaxis2: { ...epochs, domain: [0.52, 1], matches: "x", anchor: "y2" },
      yaxis: { ...axis, ...errors, title: { text: "top-1 error, %", font } },
      yaxis2: { ...axis, ...errors, matches: "y", anchor: "x2", showticklabels: false },
    }, {
      responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
      modeBarButtonsToRemove: ["lasso2d", "select2d"],
    });
  };
  document.addEventListener("click", event => {
    const button = event.target.closest(".toggle");
    if (!button) return;
    const plot = button.closest("figure").querySelector(".plot");
    const gone = hidden[Number(plot.dataset.setting)];
    const group = Number(button.dataset.group);
    if (!gone.delete(group)) gone.add(group);
    button.setAttribute("aria-pressed", !gone.has(group));
    draw(plot);
  });
  addEventListener("load", () => {
    const sight = new IntersectionObserver(entries => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        sight.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "400px" });
    all(".plot").forEach(plot => sight.observe(plot));
  });

  // Print in light colours
  let before;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    all(".plot").forEach(draw);
    all("details.commands").forEach(commands => { commands.open = true; });
  });
  addEventListener("afterprint", () => {
    if (before) root.dataset.theme = before;
    else delete root.dataset.theme;
    showTheme();
  });

  if (remembered()) root.dataset.theme = remembered();
  showTheme();
})();
