'use strict';
const clips = [...document.querySelectorAll('video')];
const player = document.getElementById('player');
const play = document.getElementById('play');
const seek = document.getElementById('seek');
const speed = document.getElementById('speed');
const speeds = [1, 0.5, 0.25];
const visible = new Set();
let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;
let rate = 0;

// Some browsers play a video from a blob but not from a data: address.
function asBlob(clip) {
  if (!clip.src.startsWith('data:')) return;
  const [head, body] = clip.src.split(',');
  const bytes = Uint8Array.from(atob(body), (c) => c.charCodeAt(0));
  const type = head.slice(5).split(';')[0];
  clip.src = URL.createObjectURL(new Blob([bytes], {type}));
  update(clip);
}

function update(clip) {
  clip.playbackRate = speeds[rate];
  if (playing && visible.has(clip)) clip.play().catch(() => {});
  else clip.pause();
}

// Clips that are compared must show the same moment: each loops by itself, and
// those of one length follow the first that is on screen.
function align() {
  const first = clips.find((clip) => visible.has(clip) && clip.readyState > 1);
  if (!first || !playing) return;
  seek.value = first.currentTime / first.duration;
  for (const clip of visible) {
    const apart = Math.abs(clip.currentTime - first.currentTime);
    const alike = Math.abs(clip.duration - first.duration) < 0.02;
    const wraps = apart > first.duration - 0.3;
    if (alike && apart > 0.1 && !wraps) clip.currentTime = first.currentTime;
  }
}

function setPlaying(on) {
  playing = on;
  player.classList.toggle('paused', !on);
  play.setAttribute('aria-label', (on ? 'Pause' : 'Play') + ' all clips');
  clips.forEach(update);
}

function setPosition(part) {
  setPlaying(false);
  for (const clip of clips) {
    if (clip.duration) clip.currentTime = part * clip.duration * 0.999;
  }
}

if (clips.length) {
  const observer = new IntersectionObserver((entries) => {
    for (const {target, isIntersecting} of entries) {
      if (isIntersecting) visible.add(target);
      else visible.delete(target);
      update(target);
    }
  });
  for (const clip of clips) {
    clip.addEventListener('error', () => asBlob(clip));
    if (clip.error) asBlob(clip);
    observer.observe(clip);
  }
  player.hidden = false;
  setPlaying(playing);
  setInterval(align, 100);
  play.onclick = () => setPlaying(!playing);
  seek.oninput = () => setPosition(seek.value);
  speed.onclick = () => {
    rate = (rate + 1) % speeds.length;
    speed.textContent = ['1×', '½×', '¼×'][rate];
    clips.forEach(update);
  };
  document.addEventListener('keydown', (event) => {
    if (event.target.closest('button, summary, input, a')) return;
    if (event.key === ' ') {
      event.preventDefault();
      setPlaying(!playing);
    }
  });
}

// The legend tells the values under the pointer, else the last ones.
for (const figure of document.querySelectorAll('.chart')) {
  const svg = figure.querySelector('svg');
  const cursor = svg.querySelector('.cursor');
  const numbers = (name) => svg.dataset[name].split(' ').map(Number);
  const [x0, x1, left, right] = numbers('x');
  const [y0, y1, floor, top] = numbers('y');
  const rows = [...figure.querySelectorAll('li')].map((item) => {
    const output = item.querySelector('output');
    const line = svg.querySelector('polyline.' + item.className);
    const points = line.getAttribute('points').split(' ');
    const pairs = points.map((point) => point.split(',').map(Number));
    return {output, pairs, last: output.textContent};
  });
  const step = document.createElement('output');
  step.className = 'step';
  figure.querySelector('figcaption').append(step);
  const value = (y) => {
    const part = (floor - y) / (floor - top);
    if (svg.dataset.log) return y0 * Math.pow(y1 / y0, part);
    return y0 + (y1 - y0) * part;
  };
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const pointer = (event.clientX - box.left) * scale;
    const x = Math.max(left, Math.min(pointer, right));
    const at = x0 + (x1 - x0) * (x - left) / (right - left);
    cursor.setAttribute('d', `M${x} ${top}V${floor}`);
    step.textContent = 'step ' + Math.round(at);
    for (const {output, pairs} of rows) {
      const near = (a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a;
      output.textContent = +value(pairs.reduce(near)[1]).toPrecision(3);
    }
  });
  svg.addEventListener('pointerleave', () => {
    cursor.setAttribute('d', '');
    step.textContent = '';
    for (const {output, last} of rows) output.textContent = last;
  });
}

for (const button of document.querySelectorAll('.command button')) {
  const code = button.parentElement.querySelector('code');
  button.hidden = false;
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = 'Copied';
      setTimeout(() => { button.textContent = 'Copy'; }, 1500);
    } catch {
      getSelection().selectAllChildren(code);
    }
  };
}
