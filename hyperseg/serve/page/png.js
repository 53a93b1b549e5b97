// The values of an 8-bit PNG with one channel, which are the classes. A canvas would give colours instead, and some
// browsers change those to protect the user.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

export async function indicesOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (SIGNATURE.some((value, at) => bytes[at] !== value)) throw new Error("the mask is no PNG");
  const parts = [];
  let width = 0, height = 0;
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at), kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (kind === "IHDR") {
      width = view.getUint32(at + 8);
      height = view.getUint32(at + 12);
      const [depth, color, , , interlaced] = bytes.subarray(at + 16, at + 21);
      if (depth !== 8 || (color !== 3 && color !== 0) || interlaced) throw new Error("the mask is a PNG of another form");
    } else if (kind === "IDAT") {
      parts.push(bytes.subarray(at + 8, at + 8 + length));
    }
    at += 12 + length;
  }
  const unpacked = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(unpacked).arrayBuffer());
  if (rows.length !== height * (width + 1)) throw new Error("the mask is cut short");
  return { width, height, indices: unfiltered(rows, width, height) };
}

function unfiltered(rows, width, height) {
  const out = new Uint8Array(width * height);
  for (let y = 0, from = 0, to = 0; y < height; y++, to += width) {
    const filter = rows[from++], up = to - width;
    for (let x = 0; x < width; x++) {
      const left = x ? out[to + x - 1] : 0, above = y ? out[up + x] : 0;
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = above;
      else if (filter === 3) guess = (left + above) >> 1;
      else if (filter === 4) guess = paeth(left, above, x && y ? out[up + x - 1] : 0);
      out[to + x] = rows[from++] + guess;
    }
  }
  return out;
}

function paeth(left, above, corner) {
  const a = Math.abs(above - corner), b = Math.abs(left - corner), c = Math.abs(left + above - 2 * corner);
  return a <= b && a <= c ? left : b <= c ? above : corner;
}
