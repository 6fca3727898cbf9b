#!/bin/sh
# Makes a thumbnail of the picture at INPUT_FILE_PATH and writes its properties, both into TMP_OUTPUT_DIR.
#
# Needs python3 in the image. With Pillow it takes any picture; without it, PNG pictures of 8 bits per channel.
set -eu
exec python3 - "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR" <<'PYTHON'
import json
import os
import struct
import sys
import zlib

SIDE = 320  # pixels of the thumbnail's longer side
source, folder = sys.argv[1:]
stem = os.path.splitext(os.path.basename(source))[0]


def by_pillow():
    """The properties of the picture; writes its thumbnail."""
    from PIL import Image, ImageStat

    with Image.open(source) as picture:
        known = {"format": picture.format, "mode": picture.mode, "width": picture.width, "height": picture.height}
        colours = picture.convert("RGB")
    colours.thumbnail((SIDE, SIDE))
    known["mean_colour"] = "#%02x%02x%02x" % tuple(int(mean) for mean in ImageStat.Stat(colours).mean)
    colours.save(os.path.join(folder, stem + ".png"))
    return known | {"thumbnail": list(colours.size), "made_by": "Pillow"}


def png_chunks(data):
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        sys.exit(stem + " is no PNG picture, and other formats need Pillow in the image")
    place = 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += length + 12


def png_rows(packed, stride, step):
    """The rows of pixels, their filters undone (https://www.w3.org/TR/png/#9Filters)."""
    above = bytes(stride)
    for start in range(0, len(packed), stride + 1):
        kind, row = packed[start], bytearray(packed[start + 1 : start + 1 + stride])
        for i in range(stride) if kind else ():
            left = row[i - step] if i >= step else 0
            up, corner = above[i], above[i - step] if i >= step else 0
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) // 2
            else:
                guess = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
            row[i] = (row[i] + guess) & 255
        above = row
        yield row


def by_hand():
    """The same with nothing but the standard library: the mean of each block of pixels becomes one."""
    packed = b""
    for kind, body in png_chunks(open(source, "rb").read()):
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            packed += body
    if depth != 8 or colour not in (0, 2, 6) or interlaced:
        sys.exit("this kind of PNG needs Pillow in the image")
    step = {0: 1, 2: 3, 6: 4}[colour]
    block = max(1, -(-max(width, height) // SIDE))
    small = (width // block or 1, height // block or 1)
    pixels, sums = bytearray(), None
    for y, row in enumerate(png_rows(zlib.decompress(packed), width * step, step)):
        if y % block == 0:
            sums = [0] * (small[0] * 3)
        for channel in range(3):
            plane = row[channel if step > 1 else 0 :: step]
            for x in range(block):
                for place, value in enumerate(plane[x : small[0] * block : block]):
                    sums[place * 3 + channel] += value
        if y % block == block - 1 and y // block < small[1]:
            pixels += bytes(value // (block * block) for value in sums)
    lines = b"".join(
        b"\0" + pixels[y * small[0] * 3 : (y + 1) * small[0] * 3] for y in range(small[1])
    )
    with open(os.path.join(folder, stem + ".png"), "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        header = struct.pack(">IIBBBBB", *small, 8, 2, 0, 0, 0)
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    mean = [sum(pixels[channel::3]) // (small[0] * small[1]) for channel in range(3)]
    return {
        "format": "PNG", "mode": {0: "L", 2: "RGB", 6: "RGBA"}[colour], "width": width, "height": height,
        "mean_colour": "#%02x%02x%02x" % tuple(mean), "thumbnail": list(small), "made_by": "the standard library",
    }


try:
    import PIL
except ImportError:
    properties = by_hand()
else:
    properties = by_pillow()
properties = {"picture": os.path.basename(source), "bytes": os.path.getsize(source)} | properties
for name, value in properties.items():
    print("%-12s %s" % (name, value))
with open(os.path.join(folder, stem + ".json"), "w") as file:
    json.dump(properties, file, indent=2)
PYTHON
