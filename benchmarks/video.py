"""A clip through the command, beside `model.stream` on the same frames.

  pip install '.[video]'
  python -m benchmarks.video [CLIP] [--frames 300] [--model animevideov3-x4]

The command is a process of its own. Its rate is of the seconds that it tells of
the clip: all but the start of the process and loading the model, so decoding,
programs from the cache, upscaling, encoding, and joining what is copied.
`stream` is timed with all frames decoded, and its programs compiled. Memory is
the most that the process had at once.

Without CLIP, one is made: 300 frames of 320 x 180, with sound.
"""

import argparse
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import machine

ROOT = pathlib.Path(__file__).parent.parent


def make_clip(path, frames, size):
  """Writes a clip of a photo that moves, with sound."""
  import av
  import skimage.data
  from PIL import Image

  width, height = size
  photo = Image.fromarray(skimage.data.astronaut())
  photo = np.asarray(photo.resize((width + frames, height + 40)))
  with av.open(str(path), "w") as output:
    video = output.add_stream("libx264", rate=25, options={"crf": "18"})
    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
    audio = output.add_stream("aac", rate=48000)
    audio.layout = "stereo"
    for n in range(frames):
      part = photo[n % 40 : n % 40 + height, n : n + width]
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(part))
      output.mux(video.encode(frame))
    output.mux(video.encode(None))
    count = 48000 * frames // 25 // 1024
    for n in range(count):
      wave = np.sin(np.arange(n * 1024, (n + 1) * 1024) / 20) * 0.3
      sound = np.ascontiguousarray(wave[None].repeat(2, 0), np.float32)
      frame = av.AudioFrame.from_ndarray(sound, "fltp", "stereo")
      frame.sample_rate, frame.pts = 48000, n * 1024
      output.mux(audio.encode(frame))
    output.mux(audio.encode(None))


def streamed(source, model, cache):
  """Frames a second of `model.stream`; for a process of its own."""
  code = f"""
import time
from esrgan_jax import compilation, video
from esrgan_jax.upscaling import upscaler
compilation.enable_compilation_cache({str(cache / "xla")!r})
clip = video.read_clip({str(source)!r})
frames = [f.pixels for f in video.read_frames({str(source)!r}, clip)]
sizes = [frame.shape[:2] for frame in frames]
model = upscaler.load({model!r})
times = []
for run in range(2):
  began = time.perf_counter()
  for n, result in enumerate(model.stream(frames, sizes=sizes)):
    pass
  times.append(time.perf_counter() - began)
print(len(frames) / times[-1])
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return float(done.stdout)


def commanded(source, target, model, cache):
  """Seconds of the command's process, of its work, and most bytes so far."""
  target.unlink(missing_ok=True)
  command = [sys.executable, "-m", "esrgan_jax", "upscale", str(source)]
  command += ["-o", str(target), "-m", model]
  environment = {**os.environ, "ESRGAN_JAX_CACHE": str(cache)}
  began = time.perf_counter()
  done = subprocess.run(
    command,
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  seconds = time.perf_counter() - began
  most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  line = next(s for s in done.stdout.splitlines() if s.startswith(str(target)))
  print(line)
  inside = float(re.search(r", ([\d.]+) s", line)[1])
  return seconds, inside, most * 1024


def main():
  """Prints rates, their ratio, and memory."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("clip", nargs="?", type=pathlib.Path)
  parser.add_argument("--frames", type=int, default=300)
  parser.add_argument("--size", default="320x180")
  parser.add_argument("--model", default="animevideov3-x4")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as work:
    measure(args, pathlib.Path(work))


def measure(args, work):
  """Runs the command and `stream` on one clip."""
  from esrgan_jax import video

  source = args.clip
  if source is None:
    source = work / "clip.mp4"
    size = tuple(map(int, args.size.split("x")))
    make_clip(source, args.frames, size)
  source = source.absolute()
  clip = video.read_clip(source)
  count = sum(1 for _ in video.read_frames(source, clip))
  print(machine.versions("jax", "av"))
  print(machine.describe())
  print(f"{count} frames of {clip.width} x {clip.height}, {args.model}")
  cache, target = work / "cache", work / f"result{source.suffix}"
  commanded(source, target, args.model, cache)  # Compiles.
  seconds, inside, most = commanded(source, target, args.model, cache)
  rate = streamed(source, args.model, cache)
  again = commanded(source, target, args.model, cache)
  seconds, inside = min(seconds, again[0]), min(inside, again[1])
  print(f"model.stream: {rate:.2f} frames a second")
  print(
    f"the command: {count / inside:.2f} frames a second,"
    f" {count / inside / rate:.2f} of that; {seconds:.1f} s in all"
  )
  print(f"its memory: {most / 1e9:.2f} GB at most")


if __name__ == "__main__":
  main()
