"""Storyboards: what goes in comes out, and every mistake has its line."""

import copy
import dataclasses
import json
import pathlib

import pytest

import dcjax
from dcjax import storyboard, storyboard_rules
from dcjax.errors import DcjaxError
from dcjax.storyboard import (
  Event,
  Guidance,
  Reference,
  Storyboard,
  TimedConcept,
)

EXAMPLES = pathlib.Path(__file__).parents[1] / 'examples'
RECORD = {
  'prompt': 'a dog and a cat in a garden. the [v] bird is [u] moving.',
  'seconds': 5.0,
  'size': [480, 832],
  'fps': 16,
  'seed': 3,
  'references': [
    {'image': 'dog.png', 'word': 'dog', 'start': 0.5, 'end': 3.0},
    {'image': 'cat.png', 'word': 'cat', 'start': 2.5, 'end': 5.0},
  ],
  'concepts': [
    {'file': 'bird/c.safetensors', 'motion': 0.5, 'start': 2.0, 'end': 4.0}
  ],
  'events': [
    {'text': 'the dog runs in from the left', 'start': 0.5, 'end': 2.0}
  ],
  'guidance': {'text': 4.0, 'reference': 1.5, 'both': 0.0},
  'steps': 40,
  'shift': 5.66,
}


def parse(**changes):
  return storyboard.parse({**copy.deepcopy(RECORD), **changes})


def reference(**changes):
  return {**RECORD['references'][0], **changes}


def concept(**changes):
  return {**RECORD['concepts'][0], **changes}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'bird').mkdir()
  for name in ('dog.png', 'cat.png', 'bird/c.safetensors'):
    (tmp_path / name).write_bytes(b'x')
  return tmp_path


# ---- in and out --------------------------------------------------------------


def test_a_file_becomes_a_storyboard_and_the_same_file_again(folder):
  path = folder / 'story.json'
  path.write_text(json.dumps(RECORD))
  story = Storyboard.load(path)
  assert story.references[0] == Reference(
    str(folder / 'dog.png'), 'dog', 0.5, 3.0
  )
  assert story.concepts == (
    TimedConcept(
      str(folder / 'bird/c.safetensors'), motion=0.5, start=2.0, end=4.0
    ),
  )
  assert story.events == (Event('the dog runs in from the left', 0.5, 2.0),)
  assert story.guidance == Guidance(4.0, 1.5)
  assert (story.size, story.fps, story.seed) == ((480, 832), 16, 3)
  assert Storyboard.load(story.save(folder / 'again.json')) == story
  said = json.loads((folder / 'again.json').read_text())
  assert said['references'] == RECORD['references']
  assert said['size'] == RECORD['size']


def test_files_are_named_from_where_the_storyboard_lies(folder, tmp_path):
  path = folder / 'story.json'
  path.write_text(json.dumps(RECORD))
  story = Storyboard.load(path)
  elsewhere = story.save(tmp_path / 'deep' / 'er' / 'story.json')
  # What is not below it, is named in full.
  assert Storyboard.load(elsewhere).references == tuple(
    dataclasses.replace(x, image=str((folder / x.image).resolve()))
    for x in story.references
  )


def test_what_is_left_out_is_the_bases_own(folder):
  story = storyboard.parse(
    {'prompt': 'a dog', 'references': [{'image': 'dog.png', 'word': 'dog'}]}
  )
  assert (story.seconds, story.size, story.fps, story.steps) == (None,) * 4
  assert (story.references[0].start, story.references[0].end) == (0.0, None)
  assert set(story.to_json()) == {'prompt', 'seed', 'references'}


@pytest.mark.parametrize('path', sorted(EXAMPLES.glob('*.json')))
def test_the_examples_are_storyboards(path):
  """Those of a concept name one that a run of the default config writes."""
  record = json.loads(path.read_text())
  story = storyboard.parse(record, path.parent)
  assert all(pathlib.Path(x.image).is_file() for x in story.references)
  for x in story.concepts:
    assert x.file.endswith('runs/set_seq/concept.safetensors')


def test_it_is_a_public_name():
  assert dcjax.Storyboard is Storyboard


def test_lists_may_be_given_in_python():
  story = Storyboard('a dog', references=[Reference('dog.png', 'dog')])
  assert story.references == (Reference('dog.png', 'dog'),)
  assert hash(story)


# ---- what is allowed ---------------------------------------------------------


def test_references_and_concepts_may_overlap():
  assert len(parse().references) == 2


def test_a_subject_may_return():
  twice = [reference(start=0.0, end=1.0), reference(start=2.0, end=3.0)]
  assert len(parse(references=twice).references) == 2


def test_a_word_may_be_a_part_of_another_that_is_there_alone_too():
  both = [reference(word='star'), reference(word='red star', image='other.png')]
  prompt = 'a star and a red star. the [v] bird is [u] moving.'
  assert len(parse(prompt=prompt, references=both).references) == 2


def test_events_may_follow_each_other_in_any_order():
  events = [
    {'text': 'then', 'start': 2.0, 'end': 3.0},
    {'text': 'first', 'start': 0.0, 'end': 2.0},
  ]
  assert len(parse(events=events).events) == 2


def test_a_word_may_be_several_and_have_marks():
  words = [reference(word='cat in a garden')]
  assert parse(references=words).references[0].word == 'cat in a garden'
  story = parse(prompt='a C++ (dog).', references=[reference(word='(dog)')])
  assert story.references[0].word == '(dog)'


# ---- every mistake and its line ----------------------------------------------

SAME = {'text': 'and', 'start': 1.0, 'end': 2.5}
BAD = [
  ({'prompt': ' '}, 'prompt is'),
  ({'prompt': 3}, 'prompt is 3'),
  ({'seconds': 0}, 'seconds is 0; expected more than 0'),
  ({'seconds': True}, 'seconds is True'),
  ({'seconds': float('nan')}, 'seconds is nan'),
  ({'fps': -1}, 'fps is -1'),
  ({'shift': 'much'}, "shift is 'much'; expected a number"),
  ({'size': 64}, r'size is 64; expected \[height, width\]'),
  ({'size': [64]}, r'size is \[64\]'),
  ({'size': [64, 0]}, 'the width of size is 0'),
  ({'seed': -1}, 'seed is -1; expected a whole number from 0'),
  ({'seed': 0.5}, 'seed is 0.5'),
  ({'seed': 10**20}, 'expected a whole number below 4294967296'),
  ({'steps': 0}, 'steps is 0'),
  ({'references': {}}, 'references is {}; expected a list'),
  ({'references': ['dog.png']}, r"references\[0\] is 'dog.png'; expected an"),
  ({'colour': 'red'}, "unknown key 'colour'; there is prompt, seconds"),
  ({'references': [reference(begin=0)]}, r"references\[0\] .* key 'begin'"),
  ({'references': [{'image': 'dog.png'}]}, "no key 'word'"),
  ({'references': [reference(image='')]}, r"references\[0\].image is ''"),
  ({'references': [reference(image=None)]}, 'image is None'),
  ({'references': [reference(word='')]}, "word is ''"),
  ({'references': [reference(word='fox')]}, "'fox' is not in the prompt"),
  ({'references': [reference(word='og')]}, 'one or more whole words of it'),
  ({'references': [reference(end=0.5)]}, 'is empty: 0.5 to 0.5 s'),
  ({'references': [reference(end=0.2)]}, 'ends before it starts'),
  ({'references': [reference(end=5.5)]}, 'outside the video: 0.5 to 5.5 s of'),
  ({'references': [reference(start=-1)]}, 'starts at -1 s'),
  ({'references': [reference(start='0')]}, r"\.start is '0'"),
  ({'references': [reference(start=6, end=None)]}, 'ends before it starts'),
  (
    {'references': [reference(), reference(image='other.png', start=4, end=5)]},
    "2 pictures have the word 'dog'; call each by words of its own",
  ),
  (
    {
      'prompt': 'a star and a star. the [v] bird is [u] moving.',
      'references': [
        reference(word='star'),
        reference(word='star', image='other.png'),
      ],
    },
    "2 pictures have the word 'star'",
  ),
  (
    {
      'prompt': 'a red star in the [v] bird park',
      'references': [
        reference(word='star'),
        reference(word='red star', image='other.png'),
      ],
    },
    "'star' is in the prompt as a part of 'red star' alone",
  ),
  ({'concepts': [concept(word='dog')]}, "2 pictures have the word 'dog'"),
  ({'concepts': [concept(gate=False, fade=1)]}, 'without a gate nothing fades'),
  ({'events': [SAME | {'end': None}]}, r'events\[0\].end is None'),
  ({'seconds': 10**400}, 'a number of more than 30 digits; expected 3600'),
  ({'seconds': 1e12}, 'seconds is 1000000000000.0; expected 3600 at most'),
  ({'size': [10**9, 10**9]}, 'height of size is .* from 1 to 8192'),
  ({'steps': 10**30}, 'a whole number from 1 to 1000'),
  ({'guidance': {'text': 1e308, 'reference': 1}}, 'expected 1000 at most'),
  (
    {'references': [reference(), reference(start=2.9)]},
    "two intervals of 'dog' overlap",
  ),
  ({'concepts': [{'start': 1}]}, r"concepts\[0\] has no key 'file'"),
  ({'concepts': [concept(file='')]}, r"concepts\[0\].file is ''"),
  ({'concepts': [concept(identity='1')]}, "identity is '1'"),
  ({'concepts': [concept(fade=-1)]}, 'fade is -1; expected 0 s or more'),
  ({'concepts': [concept(gate=1)]}, 'gate is 1; expected true or false'),
  ({'concepts': [concept(timing='now')]}, 'use one of reference, event'),
  ({'concepts': [concept(word='fox')]}, "'fox' is not in the prompt"),
  ({'concepts': [concept(word=3)]}, 'word is 3'),
  ({'concepts': [concept(text='a bird')]}, 'text is not read with timing'),
  (
    {'concepts': [concept(timing='event', image='x.png')]},
    'image is not read with timing',
  ),
  ({'concepts': [concept(end=9)]}, 'outside the video'),
  ({'events': [{'text': 'x', 'start': 1}]}, "no key 'end'"),
  ({'events': [{'text': '', 'start': 1, 'end': 2}]}, r'events\[0\].text'),
  ({'events': [{'text': 'x', 'start': 2, 'end': 1}]}, 'ends before it starts'),
  (
    {'events': [RECORD['events'][0], SAME]},
    r'events\[0\] and events\[1\] overlap',
  ),
  (
    {'concepts': [concept(timing='event', start=1.0)]},
    r'events\[0\] and concepts\[0\] overlap',
  ),
  (
    {'references': [], 'concepts': [], 'events': []},
    'nobody is on the timeline',
  ),
  ({'guidance': 4.0}, 'guidance is 4.0; expected an object'),
  ({'guidance': {'text': 4.0}}, "guidance has no key 'reference'"),
  ({'guidance': {'text': 4, 'reference': 'x'}}, "guidance.reference is 'x'"),
  (
    {'guidance': {'text': 4, 'reference': 1, 'form': 'best'}},
    'use one of three_weight, video_alchemist, instruct_pix2pix',
  ),
  (
    {'guidance': {'text': 4, 'reference': 1, 'form': []}},
    r'guidance.form is \[\]; use one of',
  ),
  (
    {'guidance': dict(text=4, reference=1, both=1, form='video_alchemist')},
    'guidance.both is 1',
  ),
  ({'guidance': {'text': 4, 'image': 1}}, "unknown key 'image'"),
]


@pytest.mark.parametrize('changes, line', BAD)
def test_a_mistake_is_one_line(changes, line):
  with pytest.raises(DcjaxError, match=line) as error:
    parse(**changes)
  assert '\n' not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_line(folder):
  with pytest.raises(DcjaxError, match='there is no storyboard'):
    Storyboard.load(folder / 'none.json')
  with pytest.raises(DcjaxError, match='is no JSON file'):
    Storyboard.load(folder)
  (folder / 'bad.json').write_text('{"prompt": ')
  with pytest.raises(DcjaxError, match='bad.json is no JSON file'):
    Storyboard.load(folder / 'bad.json')
  (folder / 'bad.json').write_text('[' * 100_000)
  with pytest.raises(DcjaxError, match='bad.json is no JSON file'):
    Storyboard.load(folder / 'bad.json')
  (folder / 'bad.json').write_text('{"prompt": "a", "prompt": "b"}')
  with pytest.raises(DcjaxError, match="the key 'prompt' is there twice"):
    Storyboard.load(folder / 'bad.json')
  (folder / 'list.json').write_text('[]')
  with pytest.raises(DcjaxError, match=r'the storyboard is \[\]'):
    Storyboard.load(folder / 'list.json')


@pytest.mark.parametrize('name', ['dog.png', 'bird/c.safetensors'])
def test_a_missing_file_is_named(folder, name):
  path = folder / 'story.json'
  path.write_text(json.dumps(RECORD))
  (folder / name).unlink()
  with pytest.raises(DcjaxError, match=f'json: there is no file .*{name}'):
    Storyboard.load(path)


def test_the_rules_know_every_form_of_guidance():
  for form, scales in storyboard_rules.FORMS.items():
    Storyboard(
      'x',
      events=[Event('y', 0, 1)],
      guidance=Guidance(**dict.fromkeys(scales, 1.0), form=form),
    )
