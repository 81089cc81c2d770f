// Points as pixels. Drawn as plotly's own traces, 8,000 points took 0.5 s to show a selection with software rendering
// (80,000: 2.5 s; plotly.js 4.1, WebGL); the canvas's drawImage takes ten times as long as this for so many small pictures.

const HIDDEN = 0;
const FAINT = 1;
const STRONG = 2;
const STRENGTHS = [0, 0.13, 0.9];
const GROUNDS = { light: 0xffffffff, dark: 0xff1c1816 }; // as bytes in the order of memory: alpha, blue, green, red

// The pixels of the points of one colouring, made when they are first needed.
class Sprites {
  constructor(palette, dark, radius, ratio) {
    Object.assign(this, { palette, dark, radius, ratio, kept: [] });
  }

  // Six numbers each: x and y from its middle, red, green, blue, and how much of it is covered. A clean point is a disc,
  // an adversarial one a triangle.
  of(bin, kind) {
    return (this.kept[2 * bin + 2 + kind] ??= this.make(bin, kind));
  }

  make(bin, kind) {
    const { radius } = this;
    const half = Math.ceil(2 * radius * this.ratio);
    const canvas = element("canvas", { width: 2 * half, height: 2 * half });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.translate(half, half);
    context.scale(this.ratio, this.ratio);
    context.fillStyle = bin < 0 ? "#999" : this.palette[bin % this.palette.length];
    context.strokeStyle = this.dark ? "rgba(0,0,0,.55)" : "rgba(255,255,255,.75)";
    context.lineWidth = 0.5;
    tracePoint(context, kind, radius);
    context.fill();
    context.stroke();
    const { data } = context.getImageData(0, 0, 2 * half, 2 * half);
    const covered = [];
    for (let at = 0; at < data.length; at += 4) {
      const place = at / 4;
      const [x, y] = [(place % (2 * half)) - half, Math.floor(place / (2 * half)) - half];
      if (data[at + 3]) covered.push(x, y, data[at], data[at + 1], data[at + 2], data[at + 3] / 255);
    }
    return Object.assign(Float32Array.from(covered), { half });
  }
}

const TRIANGLE = [[0, -1.38], [1.31, 1], [-1.31, 1]]; // corners, in radii

function tracePoint(context, kind, radius) {
  context.beginPath();
  if (kind === 0) context.arc(0, 0, radius, 0, 2 * Math.PI);
  else TRIANGLE.forEach(([x, y]) => context.lineTo(x * radius, y * radius));
  context.closePath();
}

// Lay a point over an image.
function blend(image, sprite, column, row, strength) {
  const { data, width, height } = image;
  const { half } = sprite;
  const whole = column >= half && row >= half && column + half < width && row + half < height;
  for (let at = 0; at < sprite.length; at += 6) {
    const x = column + sprite[at];
    const y = row + sprite[at + 1];
    if (!whole && (x < 0 || x >= width || y < 0 || y >= height)) continue;
    const share = sprite[at + 5] * strength;
    const to = 4 * (y * width + x);
    data[to] += share * (sprite[at + 2] - data[to]);
    data[to + 1] += share * (sprite[at + 3] - data[to + 1]);
    data[to + 2] += share * (sprite[at + 4] - data[to + 2]);
  }
}

// The points of a panel as an image of so many device pixels; faint ones lie below the others.
function rasterise(panel, width, height, ratio, sprites, dark) {
  const image = new ImageData(width, height);
  new Uint32Array(image.data.buffer).fill(dark ? GROUNDS.dark : GROUNDS.light);
  const { scale, left, bottom } = panel.frame();
  for (const strength of panel.someAreFaint() ? [FAINT, STRONG] : [STRONG]) {
    panel.eachPoint((i, kind, x, y, bin) => {
      const column = Math.round((left + x * scale) * ratio);
      const row = Math.round((bottom - y * scale) * ratio);
      blend(image, sprites.of(bin, kind), column, row, STRENGTHS[strength]);
    }, strength);
  }
  return image;
}
