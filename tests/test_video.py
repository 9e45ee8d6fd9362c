"""Clips: any file a person may point at becomes what a player would show."""

from fractions import Fraction
import logging
import pathlib
import struct

import numpy as np
import pytest

from dcjax.data import decode, video
from dcjax.data.video import Video, fit, read_video, take, write_video
from dcjax.errors import DcjaxError

av = pytest.importorskip('av')
Image = pytest.importorskip('PIL.Image')

H264_ERROR = 8  # of 255: what 4:2:0 and crf 12 may cost on flat patches


def levels(frames, height=32, width=48):
  """Frame i is grey of level 10 i, so that a frame tells its own number."""
  values = np.arange(frames, dtype=np.uint8) * 10
  grid = np.broadcast_to(
    values[:, None, None, None], (frames, height, width, 3)
  )
  return np.ascontiguousarray(grid)


def numbers(clip):
  """The inverse of `levels`, from the centre pixels."""
  _, h, w, _ = clip.frames.shape
  centre = clip.frames[:, h // 2, w // 2].astype(float).mean(-1)
  return np.rint(centre / 10).astype(int).tolist()


def corner(frames=3, height=32, width=48):
  """Red in the top left quarter, else blue."""
  x = np.zeros((frames, height, width, 3), np.uint8)
  x[..., 2] = 255
  x[:, : height // 2, : width // 2] = (255, 0, 0)
  return x


def encode(path, frames, codec='libx264', pixels='yuv420p', times=None, **kw):
  """Writes with PyAV alone; `times` are the frames' milliseconds."""
  kind = 'rgba' if frames.shape[-1] == 4 else 'rgb24'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=kw.pop('rate', 8))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pixels
    stream.options = kw
    if times is not None:
      stream.codec_context.time_base = Fraction(1, 1000)
    for i, x in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(x, format=kind)
      if times is not None:
        frame.pts, frame.time_base = times[i], Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def sound(path):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('aac', rate=16000)
    for i in range(4):
      noise = np.zeros((1, 1024), np.float32)
      frame = av.AudioFrame.from_ndarray(noise, format='fltp', layout='mono')
      frame.sample_rate, frame.pts = 16000, 1024 * i
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


@pytest.mark.parametrize('shape', [(64, 64), (33, 47), (1, 1), (90, 40)])
def test_written_clip_is_read_back(tmp_path, shape):
  h, w = shape
  frames = levels(9, h, w)
  write_video(tmp_path / 'clip.mp4', frames, fps=16)
  clip = read_video(tmp_path / 'clip.mp4')
  assert clip.fps == 16
  assert clip.frames.shape == (9, h + h % 2, w + w % 2, 3)
  error = clip.frames[:, :h, :w].astype(int) - frames
  assert np.abs(error).max() <= H264_ERROR


def test_colours_survive_writing(tmp_path):
  colours = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 160, 0], [90, 20, 140]],
    np.uint8,
  )
  frames = np.repeat(colours, 16, axis=0)[None, None].repeat(5, 0).repeat(32, 1)
  write_video(tmp_path / 'clip.mp4', frames)
  back = read_video(tmp_path / 'clip.mp4').frames
  error = back[:, 8, 8::16].astype(int) - colours[None]
  assert np.abs(error).max() <= H264_ERROR


def test_writing_and_reading_again_does_not_darken(tmp_path):
  rng = np.random.default_rng(0)
  patches = rng.integers(40, 216, (1, 16, 16, 3), np.uint8)
  frames = patches.repeat(5, 0).repeat(8, 1).repeat(8, 2)
  write_video(tmp_path / 'clip.mp4', frames)
  back = read_video(tmp_path / 'clip.mp4').frames
  assert abs((back.astype(float) - frames).mean()) < 0.25


def test_scale_repeats_pixels(tmp_path):
  write_video(tmp_path / 'big.mp4', corner(), scale=4)
  clip = read_video(tmp_path / 'big.mp4')
  assert clip.frames.shape[1:3] == (128, 192)
  assert clip.frames[0, 56, 88, 0] > 240 and clip.frames[0, 72, 104, 0] < 15


@pytest.mark.parametrize('suffix', ['.gif', '.webp', '.png'])
def test_animated_images_both_ways(tmp_path, suffix):
  path = tmp_path / f'clip{suffix}'
  write_video(path, levels(17), fps=8)
  clip = read_video(path)
  assert (clip.fps, numbers(clip)) == (8, list(range(17)))


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
  path = tmp_path / 'new' / 'clip.mp4'
  write_video(path, levels(3))
  before = path.read_bytes()

  def fail(temporary, *_):
    pathlib.Path(temporary).write_bytes(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(video, '_write_h264', fail)
  with pytest.raises(DcjaxError, match='No space left'):
    write_video(path, levels(5))
  assert path.read_bytes() == before
  assert [x.name for x in path.parent.iterdir()] == ['clip.mp4']


@pytest.mark.parametrize(
  'array, name, words',
  [
    (np.zeros((3, 8, 8, 3), np.float32), 'a.mp4', 'uint8'),
    (np.zeros((8, 8, 3), np.uint8), 'a.mp4', 'f h w 3'),
    (np.zeros((0, 8, 8, 3), np.uint8), 'a.mp4', 'nothing'),
    (np.zeros((3, 8, 8, 3), np.uint8), 'a.xyz', 'mp4'),
  ],
)
def test_impossible_writes_are_refused(tmp_path, array, name, words):
  with pytest.raises(DcjaxError, match=words):
    write_video(tmp_path / name, array)


def test_variable_rate_keeps_its_timing(tmp_path):
  # 1/8 s apart but for a rest of half a second after the third frame.
  times = [0, 125, 250, 750, 875, 1000]
  path = encode(tmp_path / 'vfr.mkv', levels(6), times=times)
  clip = read_video(path)
  assert clip.fps == 8
  assert numbers(clip) == [0, 1, 2, 2, 3, 3, 3, 4, 5]
  assert numbers(read_video(path, fps=4)) == [0, 2, 3, 3, 5]


@pytest.mark.parametrize(
  'fps, expected',
  [
    (4, [0, 2, 4, 6, 8, 10, 12, 14]),
    (16, [i // 2 for i in range(32)]),
  ],
)
def test_other_rates_take_the_nearest_frame(tmp_path, fps, expected):
  path = encode(tmp_path / 'clip.mp4', levels(16))
  clip = read_video(path, fps=fps)
  assert clip.seconds == pytest.approx(2.0)
  got = np.array(numbers(clip))
  # Halfway between two frames either is nearest.
  assert len(got) == len(expected) and np.abs(got - expected).max() <= fps // 16


def test_ntsc_rate_is_kept(tmp_path):
  rate = Fraction(24000, 1001)
  path = encode(tmp_path / 'clip.mp4', levels(12), rate=rate)
  assert read_video(path).fps == pytest.approx(float(rate), abs=1e-6)


def test_first_frames_only(tmp_path):
  path = encode(tmp_path / 'clip.mp4', levels(16))
  assert numbers(read_video(path, max_frames=3)) == [0, 1, 2]
  assert numbers(read_video(path, fps=4, max_frames=3)) == [0, 2, 4]


QUARTER = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1)}
QUARTER |= {270: (0, -1, 1, 0), 'mirror': (-1, 0, 0, 1)}


@pytest.mark.parametrize('turn', QUARTER)
def test_phone_orientation(tmp_path, turn):
  path = encode(tmp_path / 'phone.mp4', corner())
  # As phones do: the stored picture is unturned, the track header has a matrix.
  data = bytearray(path.read_bytes())
  at = data.index(b'tkhd') + 4 + 40
  a, b, c, d = (x << 16 for x in QUARTER[turn])
  data[at : at + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
  path.write_bytes(data)
  upright = corner()[0]
  if turn == 'mirror':
    upright = upright[:, ::-1]
  else:
    upright = np.rot90(upright, -turn // 90)  # clockwise
  got = read_video(path).frames[0]
  assert got.shape == upright.shape
  assert np.abs(got.astype(int) - upright).mean() < 10


@pytest.mark.parametrize(
  'name, codec, pixels',
  [
    ('a.webm', 'libvpx-vp9', 'yuva420p'),
    ('a.mov', 'qtrle', 'argb'),
  ],
)
def test_transparent_video_lies_over_white(tmp_path, name, codec, pixels):
  frames = np.zeros((4, 32, 48, 4), np.uint8)
  frames[:, :, :24] = (255, 0, 0, 255)
  path = encode(tmp_path / name, frames, codec, pixels)
  clip = read_video(path)
  assert len(clip.frames) == 4
  assert np.abs(clip.frames[:, 16, 40].astype(int) - 255).max() <= H264_ERROR
  assert (
    np.abs(clip.frames[:, 16, 8].astype(int) - (255, 0, 0)).max() <= H264_ERROR
  )


def test_transparent_images_lie_over_white(tmp_path):
  x = np.zeros((8, 8, 4), np.uint8)
  x[:, :4] = (0, 0, 255, 128)
  images = [Image.fromarray(x)] * 2
  images[0].save(
    tmp_path / 'a.webp',
    save_all=True,
    append_images=[Image.fromarray(x[:, ::-1])],
    lossless=True,
    duration=100,
  )
  clip = read_video(tmp_path / 'a.webp')
  assert clip.frames[0, 4, 6].tolist() == [255, 255, 255]
  assert clip.frames[1, 4, 6].tolist() == [127, 127, 255]


def test_anamorphic_pixels_become_square(tmp_path):
  path = tmp_path / 'wide.mp4'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=8)
    stream.height, stream.width, stream.pix_fmt = 32, 32, 'yuv420p'
    stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
    for x in corner(3, 32, 32):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(x)))
    container.mux(stream.encode())
  assert read_video(path).frames.shape == (3, 32, 64, 3)


def test_folder_is_read_in_the_order_of_its_numbers(tmp_path):
  for i, x in enumerate(levels(12)):
    Image.fromarray(x).save(tmp_path / f'frame{i}.png')
  (tmp_path / 'notes.txt').write_text('not a frame')
  clip = read_video(tmp_path, fps=6)
  assert (clip.fps, numbers(clip)) == (6, list(range(12)))
  assert read_video(tmp_path).fps == decode.DEFAULT_FPS


def test_folder_of_several_sizes_needs_a_size(tmp_path):
  Image.fromarray(corner(1, 20, 20)[0]).save(tmp_path / 'a.png')
  Image.fromarray(corner(1, 20, 30)[0]).save(tmp_path / 'b.jpg')
  with pytest.raises(DcjaxError, match=r'20x20 to 30x20.*size='):
    read_video(tmp_path)
  assert read_video(tmp_path, size=(16, 16)).frames.shape == (2, 16, 16, 3)


def test_photograph_is_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # turn clockwise to show
  image = Image.fromarray(corner(1)[0])
  image.save(tmp_path / 'a.jpg', exif=exif, quality=95)
  still = read_video(tmp_path / 'a.jpg').frames
  assert still.shape == (1, 48, 32, 3)
  assert still[0, 8, 28, 0] > 200 and still[0, 8, 4, 0] < 50


def test_sixteen_bit_grey(tmp_path):
  ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
  Image.fromarray(ramp).save(tmp_path / 'a.png')
  row = read_video(tmp_path / 'a.png').frames[0, 0, :, 0].astype(int)
  assert row[0] == 0 and row[-1] == 255 and abs(row[32] - 128) < 4


def broken_files(folder):
  good = encode(folder / 'good.mp4', levels(6)).read_bytes()
  (folder / 'empty.mp4').write_bytes(b'')
  (folder / 'text.mp4').write_text('this is a letter\n' * 50)
  (folder / 'text.txt').write_text('this is a letter\n' * 50)
  (folder / 'text.png').write_text('this is a letter\n' * 50)
  (folder / 'list.mp4').write_text('#EXTM3U\n#EXTINF:1,\ngood.mp4\n')
  (folder / 'cut.mp4').write_bytes(good[: len(good) // 2])  # no index left
  (folder / 'noise.mp4').write_bytes(np.random.default_rng(0).bytes(5000))
  (folder / 'folder').mkdir()
  sound(folder / 'song.m4a')
  return {
    'missing.mp4': 'does not exist',
    'empty.mp4': 'empty',
    'text.mp4': 'cannot be read',
    'text.txt': 'text|cannot be read',
    'text.png': 'cannot be read|not what its name says',
    'list.mp4': 'text|cannot be read',
    'cut.mp4': 'cut off',
    'noise.mp4': 'cannot be read',
    'folder': 'holds no images',
    'song.m4a': 'only sound',
  }


def test_every_bad_file_is_one_line(tmp_path):
  for name, words in broken_files(tmp_path).items():
    with pytest.raises(DcjaxError, match=words) as caught:
      read_video(tmp_path / name)
    assert '\n' not in str(caught.value) and name in str(caught.value)


def test_cut_off_video_gives_what_is_there(tmp_path, caplog):
  noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
  path = tmp_path / 'clip.mp4'
  write_video(path, noise)  # the index comes first, so half a file plays
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  clip = read_video(path)
  assert 2 <= len(clip.frames) < 40
  assert caplog.records
  whole = tmp_path / 'whole.mp4'
  whole.write_bytes(data)
  assert np.array_equal(clip.frames[:2], read_video(whole).frames[:2])


def test_cut_off_gif_gives_what_is_there(tmp_path, caplog):
  noise = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
  path = tmp_path / 'clip.gif'
  write_video(path, noise)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert 1 <= len(read_video(path).frames) < 8


def test_still_is_no_clip(tmp_path):
  path = encode(tmp_path / 'one.mp4', levels(1))
  assert read_video(path).frames.shape == (1, 32, 48, 3)
  with pytest.raises(DcjaxError, match=r'a still.*at least 2'):
    read_video(path, min_frames=2)


def test_film_is_refused_before_memory_ends(tmp_path, monkeypatch):
  path = encode(tmp_path / 'film.mp4', levels(16))
  monkeypatch.setattr(video, 'MAX_BYTES', 6 * 32 * 48 * 3)
  with pytest.raises(DcjaxError, match='room for 6 frames of 48x32: cut it'):
    read_video(path)
  assert len(read_video(path, max_frames=5).frames) == 5
  assert len(read_video(path, fps=2).frames) == 4
  assert len(read_video(path, size=(16, 24)).frames) == 16


def test_fit_covers_and_keeps_the_centre():
  x = np.zeros((2, 40, 80, 3), np.uint8)
  x[:, :, 20:60] = 255  # exactly what a square crop keeps
  assert (fit(Video(x, 8), 20, 20).frames > 235).all()
  assert fit(Video(x, 8), 96, 32).frames.shape == (2, 96, 32, 3)
  assert np.array_equal(fit(Video(x, 8), 40, 80).frames, x)


def test_fit_is_antialiased():
  checks = np.indices((64, 64)).sum(0) % 2 * 255
  x = checks[None, ..., None].repeat(3, -1).astype(np.uint8)
  small = fit(Video(x, 8), 16, 16).frames.astype(int)
  assert np.abs(small - 127).max() < 12


def test_take_spreads_over_the_whole_video():
  clip = take(Video(levels(25), 24), 17)
  assert numbers(clip)[0] == 0 and numbers(clip)[-1] == 24
  assert clip.fps == pytest.approx(16)


def test_take_at_true_speed():
  source = Video(levels(25), 24)
  assert numbers(take(source, 5, 8)) == [6, 9, 12, 15, 18]
  assert numbers(take(source, 5, 8, at='start')) == [0, 3, 6, 9, 12]
  assert numbers(take(source, 1)) == [12]
  # 5 s at 30 fps hold 81 frames at 16 fps: the last falls on the very end.
  long = Video(np.zeros((150, 2, 2, 3), np.uint8), 30)
  assert len(take(long, 81, 16).frames) == 81


def test_take_says_what_would_fit():
  source = Video(levels(8), 8)
  with pytest.raises(DcjaxError, match=r'lasts 1.00 s.*at most 17 frames'):
    take(source, 33, 16)
  assert len(take(source, 17, 16).frames) == 17
  with pytest.raises(DcjaxError, match='still'):
    take(Video(levels(1), 8), 17)


def test_take_says_when_it_repeats(caplog):
  with caplog.at_level(logging.WARNING):
    take(Video(levels(20), 8), 17)
    assert not caplog.records
    clip = take(Video(levels(9), 8), 17)
  assert len(clip.frames) == 17 and 'repeated' in caplog.text
