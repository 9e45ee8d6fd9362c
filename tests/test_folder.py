"""Folders and tables: what is used, and that nothing goes missing silently."""

import json
import re

import pytest

from dcjax.data import folder
from dcjax.data.folder import Wording
from dcjax.errors import DcjaxError


def files(root, **contents):
  """Files by name, with '__' for the dot."""
  for name, content in contents.items():
    (root / name.replace('__', '.')).write_bytes(content)
  return root


def read(path, **wording):
  return folder.read(path, Wording(**wording))


def named(listing):
  return {item.name: item for item in listing.items}


def reasons(listing):
  return {x.name: x.reason for x in listing.skipped}


def test_captions_and_masks_lie_beside_their_files(tmp_path):
  files(
    tmp_path,
    a__mp4=b'.',
    a__txt=b'a cat\n  jumps ',
    a__mask__png=b'.',
    b__jpg=b'.',
    b__txt='\ufeffa dog'.encode(),
  )
  listing = read(tmp_path)
  a, b = named(listing)['a.mp4'], named(listing)['b.jpg']
  assert (a.caption, b.caption) == ('a cat jumps', 'a dog')
  assert a.mask == tmp_path / 'a.mask.png' and b.mask is None
  assert not listing.skipped


def test_every_file_is_used_or_named_with_its_reason(tmp_path):
  files(
    tmp_path,
    a__mp4=b'.',
    a__txt=b'a cat',
    a__png=b'.',
    none__mp4=b'.',
    blank__mp4=b'.',
    blank__txt=b' \n',
    latin__mp4=b'.',
    latin__txt=b'\xff\xfe\xfa',
    word__mp4=b'.',
    word__txt=b'a [v] cat',
    notes__pdf=b'.',
    alone__txt=b'.',
    b__mask__mp4=b'.',
    __hidden=b'.',
  )
  (tmp_path / 'more').mkdir()
  listing = read(tmp_path)
  assert [x.name for x in listing.items] == ['a.mp4']
  for name, words in {
    'a.png': 'shares the name, and so the caption, of a.mp4',
    'none.mp4': 'no caption',
    'blank.mp4': 'no caption',
    'latin.mp4': 'latin.txt is not UTF-8',
    'word.mp4': r'\[v\] in',
    'notes.pdf': 'neither a video nor an image',
    'alone.txt': 'a caption without',
    'b.mask.mp4': 'a mask without',
    '.hidden': 'hidden',
    'more': 'a folder',
  }.items():
    assert name in reasons(listing)
    assert '\n' not in reasons(listing)[name]
    assert re.search(words, reasons(listing)[name]), name
  # Captions and masks of files that are used or named need no word.
  beside = {'a.txt', 'blank.txt', 'latin.txt', 'word.txt'}
  assert {x.name for x in tmp_path.iterdir()} == (
    {x.name for x in listing.items} | set(reasons(listing)) | beside
  )


@pytest.mark.parametrize(
  'caption,trigger,learnt',
  [
    ('a cat', '', 'a cat'),
    ('a cat', 'sks', 'sks, a cat'),
    ('a [trigger] cat and a [trigger]', 'sks', 'a sks cat and a sks'),
    ('a sks cat', 'sks', 'a sks cat'),
    ('two sksx', 'sks', 'sks, two sksx'),
  ],
)
def test_trigger_word_is_in_every_caption_once_asked_for(
  caption, trigger, learnt
):
  assert Wording(trigger=trigger).apply(caption) == learnt


def test_default_caption_serves_files_without_one(tmp_path):
  files(tmp_path, a__mp4=b'.', b__mp4=b'.', b__txt=b'a dog')
  items = named(read(tmp_path, default='a photo', trigger='sks'))
  assert items['a.mp4'].caption == 'sks, a photo'
  assert items['b.mp4'].caption == 'sks, a dog'


def test_placeholder_without_a_trigger_is_not_learnt_as_text(tmp_path):
  files(tmp_path, a__mp4=b'.', a__txt=b'a [trigger] cat')
  assert 'data.trigger is empty' in reasons(read(tmp_path))['a.mp4']


# ---- tables ------------------------------------------------------------------


def table(root, rows, kind='jsonl'):
  path = root / f'data.{kind}'
  if kind == 'jsonl':
    path.write_text('\n'.join(json.dumps(row) for row in rows))
  else:
    path.write_text('\n'.join(','.join(row) for row in rows))
  return path


@pytest.mark.parametrize('kind', ['jsonl', 'csv'])
def test_tables_name_files_beside_them_or_by_absolute_paths(tmp_path, kind):
  inner, outer = tmp_path / 'set', tmp_path / 'other.mp4'
  (inner / 'clips').mkdir(parents=True)
  files(inner / 'clips', a__mp4=b'.')
  outer.write_bytes(b'.')
  names = ['clips/a.mp4', str(outer), '../other.mp4', 'gone.mp4']
  if kind == 'jsonl':
    rows = [{'video': x, 'text': f'n {i}'} for i, x in enumerate(names)]
  else:
    rows = [('path', 'caption')] + [(x, f'n {i}') for i, x in enumerate(names)]
  listing = read(table(inner, rows, kind))
  assert [x.path for x in listing.items] == [inner / 'clips' / 'a.mp4', outer]
  assert [x.caption for x in listing.items] == ['n 0', 'n 1']
  assert 'outside of the folder' in reasons(listing)['../other.mp4']
  assert 'does not exist' in reasons(listing)['gone.mp4']


@pytest.mark.parametrize(
  'kind,mark',
  [
    *(('jsonl', x) for x in '\u2028\x85'),
    *(('csv', x) for x in '\u2028\x85\x0b\x0c'),
  ],
)
def test_lines_end_where_editors_end_them(tmp_path, kind, mark):
  files(tmp_path, a__mp4=b'.', b__mp4=b'.')
  texts = {
    'jsonl': '{"file": "a.mp4", "text": "a%scat"}\r\n{"file": "b.mp4", '
    '"text": "b"}',
    'csv': 'file,text\r\na.mp4,a%scat\r\nb.mp4,b\r\n',
  }
  (tmp_path / f'data.{kind}').write_bytes((texts[kind] % mark).encode())
  listing = read(tmp_path / f'data.{kind}')
  assert [x.caption for x in listing.items] == ['a cat', 'b']


def test_rows_without_use_are_named(tmp_path):
  files(tmp_path, a__mp4=b'.', m__mp4=b'.')
  rows = [
    {'file': 'a.mp4', 'caption': 'a cat', 'mask': 'm.mp4'},
    {'file': './a.mp4', 'caption': 'again'},
    {'caption': 'nothing'},
    {'file': 'm.mp4', 'caption': None},
  ]
  listing = read(table(tmp_path, rows))
  assert [x.mask for x in listing.items] == [tmp_path / 'm.mp4']
  assert reasons(listing) == {
    './a.mp4': 'it is in line 1 already',
    'line 3': 'it names no file; expected one of file, path, video, image, '
    'file_name',
    'm.mp4': 'it has no caption',
  }


# ---- mistakes ----------------------------------------------------------------


def written(root, name, text):
  (root / name).write_text(text)
  return root / name


@pytest.mark.parametrize(
  'make,words',
  [
    (lambda root: '', 'give the data'),
    (lambda root: root / 'gone', 'does not exist'),
    (lambda root: written(root, 'a.mp4', '.'), 'not a folder'),
    (lambda root: written(root, 'a.jsonl', '{"file": 1'), 'line 1 is not JSON'),
    (
      lambda root: written(root, 'a.jsonl', '\n[1]'),
      'line 2 is not a JSON obj',
    ),
    (lambda root: written(root, 'a.csv', 'name,caption\n'), 'no column file'),
    (lambda root: written(root, 'a.csv', 'file\na\n'), 'no column caption'),
    (lambda root: written(root, 'a.csv', ''), 'no column file'),
  ],
)
def test_mistakes_are_one_line(tmp_path, make, words):
  with pytest.raises(DcjaxError, match=words) as error:
    read(make(tmp_path))
  assert '\n' not in str(error.value)


def test_trigger_that_is_a_learned_word_is_refused():
  with pytest.raises(DcjaxError, match=r'\[v\]'):
    Wording(trigger='[v]')
