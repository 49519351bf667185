// Shows numbers as people write them.
const MINUS = "\u2212";

function digits(value, count = 4) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(count - 2).replace("e+", "e");
  return size >= 10 ** count || size === 0 ? String(Math.round(value)) : value.toPrecision(count);
}

function scaled(value, suffixes) {
  for (const [size, suffix] of suffixes) if (value >= size) return `${Number((value / size).toPrecision(3))} ${suffix}`;
  return String(Math.round(value));
}

const COUNTS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
const SIZES = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [0, "B"]];

const FORMATS = {
  text: String,
  integer: String,
  number: digits,
  signed: (value) => (value > 0 ? "+" : "") + digits(value, 3),
  share: (value) => `${(100 * value).toFixed(1)} %`,
  count: (value) => scaled(value, COUNTS),
  bytes: (value) => scaled(value, SIZES),
};

// A cell's value is a number or text, or an object with a value and the ends of its interval.
const valueOf = (cell) => (cell !== null && typeof cell === "object" ? cell.value : cell);

function formatted(cell, kind) {
  const value = valueOf(cell);
  if (value === null || value === undefined) return "";
  if (kind === "text" || typeof value !== "number") return String(value);
  let text = FORMATS[kind](value);
  if (cell.low !== undefined && cell.low !== null) {
    const half = (cell.high - cell.low) / 2;
    text = kind === "share" ? `${(100 * value).toFixed(1)} ± ${(100 * half).toFixed(1)} %` : `${text} ± ${digits(half, 2)}`;
  }
  return text.replace(/-/g, MINUS);
}
