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

  // Six numbers a pixel: x and y from the middle of the point, what it adds to red, green and blue, and the share of what
  // lies below that stays. A clean point is a disc, an adversarial one a triangle.
  of(bin, kind, strength) {
    return (this.kept[6 * (bin + 1) + 2 * strength + kind] ??= this.make(bin, kind, STRENGTHS[strength]));
  }

  make(bin, kind, strength) {
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
      const share = (strength * data[at + 3]) / 255;
      // Half a step more, since a byte drops what is behind the point.
      if (share) covered.push(x, y, ...[0, 1, 2].map((c) => share * data[at + c] + 0.5), 1 - share);
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

// Lay a point over an image, given as bytes.
function blend(bytes, width, height, sprite, column, row) {
  const { half } = sprite;
  const whole = column >= half && row >= half && column + half < width && row + half < height;
  for (let at = 0; at < sprite.length; at += 6) {
    const x = column + sprite[at];
    const y = row + sprite[at + 1];
    if (!whole && (x < 0 || x >= width || y < 0 || y >= height)) continue;
    const stays = sprite[at + 5];
    const to = 4 * (y * width + x);
    bytes[to] = sprite[at + 2] + stays * bytes[to];
    bytes[to + 1] = sprite[at + 3] + stays * bytes[to + 1];
    bytes[to + 2] = sprite[at + 4] + stays * bytes[to + 2];
  }
}

// The points of a panel as an image of so many device pixels; faint ones lie below the others.
function rasterise(panel, width, height, ratio, sprites, dark) {
  const image = new ImageData(width, height);
  new Uint32Array(image.data.buffer).fill(dark ? GROUNDS.dark : GROUNDS.light);
  const bytes = new Uint8Array(image.data.buffer);
  const { scale, left, bottom } = panel.frame();
  for (const strength of panel.someAreFaint() ? [FAINT, STRONG] : [STRONG]) {
    panel.eachPoint((i, kind, x, y, bin) => {
      const column = Math.round((left + x * scale) * ratio);
      const row = Math.round((bottom - y * scale) * ratio);
      blend(bytes, width, height, sprites.of(bin, kind, strength), column, row);
    }, strength);
  }
  return image;
}
