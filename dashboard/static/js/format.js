// The same four significant digits as dashboard/formatting.py.
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return Math.abs(value) < 1e15 ? value.toLocaleString("en-US") : exponent(value, 3);
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return exponent(value, 2);
  const decimals = size >= 10000 ? 0 : size >= 1000 ? 1 : size >= 100 ? 2 : size >= 1 ? 3 : 4;
  return value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function exponent(value, digits) {
  return value.toExponential(digits).replace(/e([+-])(\d)$/, "e$10$2");
}

// For axes: short, but with every digit that tells two ticks apart.
export function tick(value) {
  const exact = +value.toPrecision(12); // without the noise of binary fractions
  const size = Math.abs(exact);
  if (size >= 1e6) return `${+(exact / 1e6).toPrecision(12)}M`;
  if (size >= 1e4) return `${+(exact / 1e3).toPrecision(12)}k`;
  if (size !== 0 && size < 1e-3) return exact.toExponential();
  return `${exact}`;
}

export function percentTick(value) {
  return `${tick(value * 100)} %`;
}

// A share in a sentence: never 0 % or 100 % unless it is.
export function percent(share) {
  if (share > 0 && share < 0.005) return "under 1 %";
  if (share < 1 && share > 0.995) return "over 99 %";
  return `${Math.round(share * 100)} %`;
}
