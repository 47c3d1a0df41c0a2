// From the model's logits to what the page says, step by step as the run decides (snugtune/evaluate/decision.py
// and snugtune/evaluate/multilabel/decision.py).

const FLOOR = Math.log(1e-12);
const TINY = 2.2250738585072014e-308;
const LARGEST_LOG_ODDS = 30;

const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const sigmoid = (z) => 1 / (1 + Math.exp(-z));

export const logSoftmax = (logits, temperature = 1) => {
  const scaled = logits.map((z) => z / temperature);
  const largest = Math.max(...scaled);
  const log = largest + Math.log(sum(scaled.map((z) => Math.exp(z - largest))));
  return scaled.map((z) => z - log);
};

const betaConfidence = (confidence, [a, b, c]) => {
  const s = Math.min(Math.max(confidence, 1e-12), 1 - 1e-12);
  return sigmoid(a * Math.log(s) - b * Math.log1p(-s) + c);
};

// The most probable class gets its corrected confidence, the others share the rest as before.
const withConfidence = (probabilities, parameters) => {
  const K = probabilities.length;
  const top = argmax(probabilities);
  const before = probabilities[top];
  const after = Math.max(betaConfidence(before, parameters), (1 + 1e-6) / K);
  const rest = Math.max(sum(probabilities.filter((_, i) => i !== top)), TINY);
  const shared = probabilities.map((p, i) => (i === top ? after : (p * (1 - after)) / rest));
  if (Math.max(...shared) <= after) return shared;
  const even = Math.min(Math.max((before - after) / Math.max(before - 1 / K, TINY), 0), 1);
  return probabilities.map((p) => (1 - even) * p + even / K);
};

const calibrated = (logProbabilities, { temperature, scale, matrix, offset, confidence }) => {
  const x = logSoftmax(logProbabilities);
  let mapped;
  if (scale) mapped = logSoftmax(x.map((value, i) => value * scale[i] + offset[i]));
  else if (matrix) mapped = logSoftmax(matrix.map((row, i) => sum(row.map((w, j) => w * x[j])) + offset[i]));
  else mapped = logSoftmax(x, temperature);
  const probabilities = mapped.map(Math.exp);
  return confidence ? withConfidence(probabilities, confidence) : probabilities;
};

const oneLabel = (logits, { mixture, calibration }) => {
  const log = mixture.class_prior ? mixture.class_prior.map(Math.log) : null;
  const natural = mixture.trained_tau && log ? logits.map((z, i) => z + mixture.trained_tau * log[i]) : logits;
  const floored = logSoftmax(natural, mixture.temperature_a).map((z) => Math.max(z, FLOOR));
  let pooled = floored.map((z) => z / mixture.temperature);
  if (mixture.tau && log) pooled = pooled.map((z, i) => z - mixture.tau * log[i]);
  const probabilities = calibrated(logSoftmax(pooled), calibration);
  const top = argmax(probabilities);
  return { probabilities, given: [top], confidence: probabilities[top] };
};

const labelSet = (logits, { mixture, calibration, thresholds, at_least_one: atLeastOne }) => {
  const clip = (z) => Math.min(Math.max(z, -LARGEST_LOG_ODDS), LARGEST_LOG_ODDS);
  const map = (z, { temperature, offset }) => clip(z / temperature + offset);
  const probabilities = logits.map((z) => sigmoid(map(map(z, mixture.model), calibration)));
  const given = probabilities.flatMap((p, i) => (p >= thresholds[i] ? [i] : []));
  if (atLeastOne && !given.length) given.push(argmax(probabilities));
  const of = probabilities.map((p, i) => Math.log(Math.max(given.includes(i) ? p : 1 - p, 1e-12)));
  return { probabilities, given, confidence: betaConfidence(Math.exp(sum(of)), calibration.confidence) };
};

// Of one text: its labels' probabilities, which are given (their places), and how sure that is.
export const answer = (logits, decision) => (decision.thresholds ? labelSet : oneLabel)(logits, decision);

// A text read in several rows has the mean of their logits.
export const meanOf = (rows) => rows[0].map((_, k) => sum(rows.map((row) => row[k])) / rows.length);
