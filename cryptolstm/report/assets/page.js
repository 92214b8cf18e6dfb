"use strict";
// Charts, tables and contents of a report page. Everything is readable without this script.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const token = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const minus = text => text.replace("-", "−");

  // ---- tables: sort by a click on a head, filter by text ----
  const value = cell => {
    const text = (cell.dataset.value ?? cell.textContent).trim().replace("−", "-").replace(/,(?=\d{3})/g, "");
    const number = parseFloat(text);
    return Number.isNaN(number) || /^\d{4}-\d\d/.test(text) ? text : number;
  };
  const compare = (a, b) => {
    const [x, y] = [typeof a === "number", typeof b === "number"];
    return x && y ? a - b : x !== y ? (x ? -1 : 1) : String(a).localeCompare(String(b));
  };
  const sortable = table => all("thead th", table).forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = make("button", {type: "button"}, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
      all("thead th", table).forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) =>
        (down ? -1 : 1) * compare(value(a.cells[column]), value(b.cells[column])));
      body.append(...rows);
    });
  });
  const filterable = table => {
    const input = make("input", {type: "search"});
    const count = make("span", {className: "count"}), rows = [...table.tBodies[0].rows];
    const show = () => {
      const words = input.value.toLowerCase().split(/\s+/);
      rows.forEach(row => { row.hidden = !words.every(w => row.textContent.toLowerCase().includes(w)); });
      count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
    };
    input.addEventListener("input", show);
    table.closest(".scroll").before(make("div", {className: "filter"}, make("label", {}, "Filter ", input), count));
    show();
  };

  // ---- charts ----
  const store = document.getElementById("series");
  const data = store && JSON.parse(store.textContent);
  const time = k => data.start + k * data.step;
  const when = seconds => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
  const points = values => values.map((v, k) => v === null ? {time: time(k)} : {time: time(k), value: v});
  const percent = v => minus(`${v >= 0 ? "+" : ""}${v.toFixed(2)}%`);
  const price = v => minus(v.toLocaleString("en-US", {maximumSignificantDigits: 6}));
  const smallest = values => Math.min(...values.filter(v => v > 0));
  const sides = {"-1": "short", 0: "flat", 1: "long"};

  const panes = {   // name → height, series: [label, colour, kind, values, text of a value, options]
    price: () => ({stretch: 3, series: [["price", "grey", "candles", data.close, price,
      {minMove: 10 ** (Math.floor(Math.log10(smallest(data.close))) - 4)}]]}),
    equity: () => ({stretch: 3, series: data.curves.map((c, k) => [
      c.name, ["blue", "grey", "orange", "teal"][k % 4], "line", c.values, percent, {lineWidth: k ? 1 : 2, lineStyle: k < 2 ? 0 : 2}])}),
    drawdown: () => ({stretch: 1.2, series: [["drawdown", "red", "area", data.drawdown, percent, {}]]}),
    position: () => ({stretch: .8, series: [["position", "blue", "steps", data.position, v => sides[Math.sign(v)], {}]]}),
  };
  const add = (chart, [label, colour, kind, values, text, more], pane) => {
    const L = LightweightCharts, c = token(colour), format = {type: "custom", formatter: text, minMove: more.minMove ?? .01};
    const common = {priceFormat: format, priceLineVisible: false, lastValueVisible: false, ...more};
    if (kind === "candles") {
      const series = chart.addSeries(L.CandlestickSeries, {...common, upColor: "transparent", downColor: c, borderUpColor: c,
        borderDownColor: c, wickUpColor: c, wickDownColor: c}, pane);
      series.setData(data.close.map((v, k) => v === null ? {time: time(k)} :
        {time: time(k), open: data.open[k], high: data.high[k], low: data.low[k], close: v}));
      return series;
    }
    const types = {line: [L.LineSeries, {color: c}], steps: [L.LineSeries, {color: c, lineType: 1, lineWidth: 1}],
      area: [L.BaselineSeries, {baseValue: {type: "price", price: 0}, topLineColor: c, bottomLineColor: c, topFillColor1: "transparent",
        topFillColor2: "transparent", bottomFillColor1: `${c}10`, bottomFillColor2: `${c}66`, lineWidth: 1, autoscaleInfoProvider: own => {
          const range = own();
          if (range) range.priceRange.maxValue = Math.max(0, range.priceRange.maxValue);
          return range;
        }}]};
    const series = chart.addSeries(types[kind][0], {...types[kind][1], ...common}, pane);
    series.setData(kind === "steps" ? points(values).map(p => ({...p, color: token(p.value > 0 ? "blue" : p.value < 0 ? "orange" : "grey")}))
      : points(values));
    return series;
  };
  const markers = () => data.trades.flatMap(t => [
    {time: time(t.entry), position: t.side > 0 ? "belowBar" : "aboveBar", shape: t.side > 0 ? "arrowUp" : "arrowDown",
      color: token(t.side > 0 ? "blue" : "orange"), size: 1.2},
    ...(t.exit === null ? [] : [{time: time(t.exit), position: t.side > 0 ? "aboveBar" : "belowBar",
      shape: t.stopped ? "square" : "circle", color: token(t.stopped ? "red" : t.side > 0 ? "blue" : "orange"), size: .8}]),
  ]).sort((a, b) => a.time - b.time);

  const draw = box => {
    const names = box.dataset.panes.split(" "), live = make("div", {className: "live"});
    const legend = make("p", {className: "legend"}), ranges = make("div", {className: "ranges"});
    box.append(make("div", {className: "bar"}, legend, ranges), live);
    box.classList.add("drawn");
    live.tabIndex = 0;
    live.setAttribute("role", "group");
    live.setAttribute("aria-label", `Chart of ${names.join(", ")}; arrow keys move, plus and minus zoom`);
    const chart = LightweightCharts.createChart(live, {autoSize: true, width: live.clientWidth, height: live.clientHeight, localization: {locale: "en-US"},
      timeScale: {timeVisible: true, minBarSpacing: .001, lockVisibleTimeRangeOnResize: true}, crosshair: {mode: 0}, handleScroll: {mouseWheel: false, vertTouchDrag: false},
      handleScale: {mouseWheel: false}});
    live.addEventListener("focusin", () => chart.applyOptions({handleScroll: {mouseWheel: true, vertTouchDrag: false}, handleScale: {mouseWheel: true}}));
    live.addEventListener("focusout", () => chart.applyOptions({handleScroll: {mouseWheel: false, vertTouchDrag: false}, handleScale: {mouseWheel: false}}));
    live.addEventListener("pointerdown", () => live.focus({preventScroll: true}));
    let shown = [], marks = null;
    const fill = () => {   // also when the colours change
      shown.forEach(([series]) => chart.removeSeries(series));
      chart.applyOptions({layout: {background: {color: "transparent"}, textColor: token("soft"), fontFamily: token("font"),
        panes: {separatorColor: token("line")}}, grid: {vertLines: {color: token("line")}, horzLines: {color: token("line")}},
        rightPriceScale: {borderColor: token("line")}, timeScale: {borderColor: token("line")}});
      shown = names.flatMap((name, pane) => panes[name]().series.map(s => [add(chart, s, pane), ...s]));
      names.forEach((name, pane) => chart.panes()[pane].setStretchFactor(panes[name]().stretch));
      if (names[0] === "price") marks = LightweightCharts.createSeriesMarkers(shown[0][0], markers());
      tell(null);
    };
    const tell = at => {
      const k = at === null ? data.n - 1 : at;
      legend.replaceChildren(make("span", {}, `${when(time(k))} UTC`), ...shown.map(([, label, colour, , values, text]) => {
        const key = make("i", {className: "key"});
        key.style.background = token(colour);
        return make("span", {}, key, `${label} ${values[k] === null ? "–" : text(values[k])}`);
      }));
    };
    chart.subscribeCrosshairMove(e => tell(e.time === undefined ? null : Math.round((e.time - data.start) / data.step)));
    const scale = chart.timeScale(), last = data.n - 1;
    const zoom = (from, to) => scale.setVisibleLogicalRange({from, to});
    const whole = () => zoom(-.03 * last, 1.01 * last);   // room for the first label of the axis
    [["All", Infinity], ["30 d", 720], ["7 d", 168], ["1 d", 24]].forEach(([text, hours]) => {
      const bars = hours * 3600 / data.step;
      if (bars > last && hours !== Infinity) return;
      const button = make("button", {type: "button", textContent: text});
      button.addEventListener("click", () => hours === Infinity ? whole() : zoom(last - bars, last + 1));
      ranges.append(button);
    });
    live.addEventListener("keydown", e => {
      const r = scale.getVisibleLogicalRange(), span = r.to - r.from, middle = (r.from + r.to) / 2;
      const steps = {ArrowLeft: [r.from - span / 8, r.to - span / 8], ArrowRight: [r.from + span / 8, r.to + span / 8],
        "+": [middle - span / 3, middle + span / 3], "=": [middle - span / 3, middle + span / 3],
        "-": [middle - span * .75, middle + span * .75]};
      if (steps[e.key]) { e.preventDefault(); zoom(...steps[e.key]); }
    });
    fill();
    whole();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", fill);
    box.range = () => scale.getVisibleLogicalRange();
    box.show = trade => {
      const end = trade.exit ?? last, margin = Math.max(12, (end - trade.entry) / 2);
      zoom(trade.entry - margin, end + margin);
      tell(trade.entry);
    };
    return box;
  };

  // ---- CSV of the charts ----
  const csv = () => {
    const plain = ["open", "high", "low", "close", "drawdown", "position"].filter(name => data[name]);
    const names = ["time", ...plain.map(name => name === "drawdown" ? "drawdown (%)" : name), ...data.curves.map(c => `${c.name} (%)`)];
    const columns = [...plain.map(name => data[name]), ...data.curves.map(c => c.values)];
    const rows = data.drawdown.map((_, k) => [new Date(time(k) * 1000).toISOString(), ...columns.map(c => c[k] ?? "")].join(","));
    return [names.join(","), ...rows].join("\n") + "\n";
  };
  const offer = place => {
    const link = make("a", {href: "#", textContent: "data (CSV)", download: `${document.title.split(":")[0].replace(/\W+/g, "_")}_series.csv`});
    link.addEventListener("click", () => { link.href = URL.createObjectURL(new Blob([csv()], {type: "text/csv"})); });
    place.prepend(link);
  };

  all("table.sortable").forEach(sortable);
  all("table.filterable").forEach(filterable);
  if (data) {
    const drawn = all(".chart").map(draw);
    all(".tools.series").forEach(offer);
    const chart = drawn.find(box => box.dataset.panes.includes("price"));
    if (chart) all("tr[data-trade]").forEach(row => {
      row.classList.add("go");
      const go = () => {
        all("tr.chosen").forEach(other => other.classList.remove("chosen"));
        row.classList.add("chosen");
        chart.show(data.trades[row.dataset.trade]);
        chart.scrollIntoView({block: "nearest"});
      };
      const button = make("button", {type: "button"}, ...row.cells[0].childNodes);
      button.setAttribute("aria-label", `Show trade ${button.textContent} in the chart`);
      row.cells[0].append(button);
      row.addEventListener("click", go);
    });
  }

  // ---- a table wider than the screen can be scrolled with the keyboard ----
  const reachable = () => all(".scroll").forEach(box => {
    const wide = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    if (!wide) return ["tabindex", "role", "aria-label"].forEach(name => box.removeAttribute(name));
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `Table in ${box.closest("section")?.querySelector("h2").textContent ?? "the result"}, can be scrolled`);
  });
  addEventListener("resize", reachable);
  reachable();

  // ---- the entry of the contents that is on the screen ----
  const links = new Map(all(".rail a").map(a => [a.getAttribute("href").slice(1), a]));
  if (links.size) {
    const seen = new IntersectionObserver(entries => entries.forEach(e => {
      if (!e.isIntersecting) return;
      links.forEach(a => a.classList.remove("here"));
      links.get(e.target.id)?.classList.add("here");
    }), {rootMargin: "0px 0px -75% 0px"});
    all("section[id]").forEach(section => seen.observe(section));
  }
})();
