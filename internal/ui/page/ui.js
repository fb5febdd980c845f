'use strict'

// What an address may be: the letter in its cell, its name, and what that means.
const kinds = {
  dynamic: ['D', 'dynamic', 'A container has it; underlay has drawn it.'],
  static: ['S', 'static', 'A container has it, and has asked for it.'],
  leased: ['L', 'leased', 'A container has it, of the LAN’s own DHCP server.'],
  gateway: ['G', 'gateway', 'The gateway of a network.'],
  reserved: ['R', 'reserved', 'Kept for a name, or by --aux-address.'],
  host: ['H', 'host', 'The host’s own, its router’s or its DNS server’s.'],
  excluded: ['×', 'excluded', 'No container is given it: --ipam-opt exclude.'],
  squatter: ['O', 'other machine', 'Another machine of the LAN has it; no container is given it.'],
  conflict: ['!', 'conflict', 'A container has it, and so has another machine.'],
  resting: ['z', 'resting', 'Freed a while ago; free, and given to others last.'],
  free: ['', 'free', 'The next container may get it.'],
  outside: ['', 'outside the range', 'Free, and in no network’s --ip-range: a container gets it by --ip alone.'],
  odd: ['', 'not running', 'A container’s that does not run, or not yet, or has lost its interface.'],
}
const edges = { first: 'names the subnet', last: 'the broadcast address' }
const most = 8 // lines of a list that could be long
const chunkLines = 24
const still = matchMedia('(prefers-reduced-motion: reduce)')
const broad = matchMedia('(min-width: 860px)')

const $ = id => document.getElementById(id)

// make is an element with attributes and children. Texts are never read as HTML.
function make(tag, attributes, ...children) {
  const e = document.createElement(tag)
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key.startsWith('on')) e.addEventListener(key.slice(2), value)
    else if (value === true) e.setAttribute(key, '')
    else if (value !== false && value != null) e.setAttribute(key, value)
  }
  e.append(...children.filter(c => c !== null && c !== undefined && c !== false && c !== ''))
  return e
}

// Addresses are numbers here, of up to 128 bits.

function parse(text) {
  if (!text.includes(':')) {
    const bytes = text.split('.')
    if (bytes.length !== 4 || bytes.some(b => !/^\d{1,3}$/.test(b) || b > 255)) return null
    return { n: bytes.reduce((n, b) => n << 8n | BigInt(b), 0n), bits: 32 }
  }
  const halves = text.split('::')
  const groups = half => half === '' ? [] : half.split(':')
  const head = groups(halves[0]), tail = groups(halves[1] ?? '')
  const zeros = 8 - head.length - tail.length
  if (halves.length > 2 || (halves.length === 2 ? zeros < 1 : zeros !== 0)) return null
  const all = [...head, ...Array(zeros).fill('0'), ...tail]
  if (all.some(g => !/^[0-9a-f]{1,4}$/i.test(g))) return null
  return { n: all.reduce((n, g) => n << 16n | BigInt('0x' + g), 0n), bits: 128 }
}

function format(n, bits) {
  if (bits === 32) return [24n, 16n, 8n, 0n].map(s => n >> s & 255n).join('.')
  const groups = Array.from({ length: 8 }, (_, i) => (n >> BigInt(112 - 16 * i) & 0xffffn).toString(16))
  let at = -1, length = 1
  for (let i = 0; i < 8; i++) {
    let j = i
    while (j < 8 && groups[j] === '0') j++
    if (j - i > length) [at, length] = [i, j - i]
  }
  if (at < 0) return groups.join(':')
  return groups.slice(0, at).join(':') + '::' + groups.slice(at + length).join(':')
}

function count(n) {
  const size = Number(n)
  return size < 2 ** 40 ? size.toLocaleString('en') : '~2^' + Math.round(Math.log2(size))
}

const plural = (n, one, more) => count(n) + ' ' + (Number(n) === 1 ? one : more)

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' })
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' })

function ago(time) {
  const seconds = Math.max(0, Math.round((Date.now() - new Date(time)) / 1000))
  for (const [unit, size] of [['day', 86400], ['hour', 3600], ['minute', 60]]) {
    if (seconds >= size) return plural(Math.floor(seconds / size), unit, unit + 's') + ' ago'
  }
  return seconds < 5 ? 'just now' : seconds + ' seconds ago'
}

const when = time => make('time', { datetime: time }, calendar.format(new Date(time)), ', ', ago(time))
const short = id => id.slice(0, 12)

// What is known.

let status = null
let networks = new Map() // by ID
const byKey = new Map() // lines of addresses
const pools = new Map() // by subnet
let chosen = null // whose details are shown: { pool, at }
let only = null // the kind that is to be seen alone
let down = ''

const keyOf = a => (a.kind === 'excluded' ? 'x' : '') + a.address
const kindOf = a => a.conflict ? 'conflict' : a.kind
const isContainer = a => a.kind === 'dynamic' || a.kind === 'static' || a.kind === 'leased'
const isOdd = a => isContainer(a) && a.state && a.state !== 'running'

// Pool is a subnet and its grid. Where an address is, is its distance from the
// subnet's first one. Of a large subnet only the rows in use are lines of the grid,
// with a line for what is between them; and only the lines near the window are there.
class Pool {
  constructor(subnet) {
    const [first, length] = subnet.split('/')
    this.subnet = subnet
    const { n, bits } = parse(first)
    Object.assign(this, { base: n, bits, hostBits: bits - Number(length), use: null })
    this.size = 1n << BigInt(this.hostBits)
    this.points = new Map() // lines of addresses, by where they are
    this.ranges = [] // that are excluded, in their order
    this.spans = [] // where addresses are drawn from; none: everywhere
    this.extra = new Set() // rows that somebody wants to see
    this.lines = []
    this.chunks = []
    this.cells = new Map() // those that are there
    this.current = null // the one that Tab comes to
    this.build()
  }

  build() {
    this.title = make('h2', { id: 'pool-' + this.subnet }, this.subnet)
    this.where = make('span', { class: 'muted' })
    this.totals = make('p', { class: 'totals' })
    this.bar = make('div', { class: 'bar', 'aria-hidden': 'true' })
    const label = this.bits === 128 ? 'own' : this.hostBits <= 8 ? 'narrow' : this.hostBits <= 16 ? 'wide' : 'wider'
    this.grid = make('div', { class: 'grid', role: 'grid', 'aria-readonly': 'true', 'aria-labelledby': 'pool-' + this.subnet, 'data-label': label })
    this.section = make('section', { class: 'card pool', 'data-subnet': this.subnet }, make('header', {}, this.title, this.where), this.totals, this.bar, this.grid)
    this.grid.addEventListener('click', e => {
      const at = this.whereOf(e.target)
      if (at === null) return
      this.focus(at)
      choose(this, at, false)
    })
    this.grid.addEventListener('keydown', e => this.key(e))
    this.near = new IntersectionObserver(entries => {
      for (const e of entries) e.isIntersecting ? this.fill(e.target.chunk) : this.empty(e.target.chunk)
    }, { rootMargin: '500px' })
  }

  drop() {
    this.near.disconnect()
    this.section.remove()
  }

  locate(text) {
    const a = parse(text)
    return a && a.bits === this.bits && a.n >= this.base && a.n < this.base + this.size ? a.n - this.base : null
  }

  address(at) { return format(this.base + at, this.bits) }

  whereOf(target) {
    const cell = target.closest('.c')
    return cell ? BigInt(cell.dataset.at) : null
  }

  put(a) {
    const at = this.locate(a.address)
    if (a.kind !== 'excluded') {
      this.points.set(at, a)
      return
    }
    this.remove(a)
    this.ranges.push({ from: at, to: a.last ? this.locate(a.last) : at, a })
    this.ranges.sort((x, y) => x.from < y.from ? -1 : 1)
  }

  remove(a) {
    const at = this.locate(a.address)
    if (a.kind !== 'excluded') this.points.delete(at)
    else this.ranges = this.ranges.filter(r => r.from !== at)
  }

  rangeAt(at) {
    let low = 0, high = this.ranges.length
    while (low < high) {
      const middle = low + high >> 1
      if (this.ranges[middle].to < at) low = middle + 1
      else high = middle
    }
    const r = this.ranges[low]
    return r && r.from <= at ? r : null
  }

  // see says what there is: kind, line, range.
  see(at) {
    const a = this.points.get(at)
    if (a) return { kind: kindOf(a), a }
    const range = this.rangeAt(at)
    if (range) return { kind: 'excluded', a: range.a, range }
    if (this.hostBits >= 2 && at === 0n) return { kind: 'edge', edge: edges.first }
    if (this.hostBits >= 2 && this.bits === 32 && at === this.size - 1n) return { kind: 'edge', edge: edges.last }
    return { kind: this.draws(at) ? 'free' : 'outside' }
  }

  draws(at) { return this.spans.length === 0 || this.spans.some(s => s.from <= at && at <= s.to) }

  // settle takes what the plugin says of the pool's use.
  settle(use) {
    const names = () => this.spans.map(s => s.range).join()
    const before = names()
    this.use = use
    this.spans = (use.ranges ?? []).map(r => {
      const [first, length] = r.range.split('/'), from = this.locate(first)
      return { ...r, from, to: from + (1n << BigInt(this.bits - length)) - 1n }
    })
    if (names() !== before) this.lines = [] // they have other words
    this.head()
    if (!this.lines.length) this.layout(columns())
  }

  // free is how many addresses may be drawn. Ranges are in each other, or apart.
  free() {
    if (this.spans.length === 0) return Number(this.use?.free ?? 0)
    const outer = this.spans.filter(s => !this.spans.some(o => o !== s && o.from <= s.from && s.to <= o.to))
    return outer.reduce((n, s) => n + Number(s.free), 0)
  }

  say(at) {
    const { kind, a, edge } = this.see(at)
    const words = [this.address(at), edge ?? kinds[kind][1]]
    if (a?.container) words.push(a.container)
    if (a && isOdd(a)) words.push(a.state)
    return words.join(', ')
  }

  // layout makes the lines anew, and what is seen of them if they are others now.
  layout(cols) {
    const width = BigInt(cols)
    const rows = (this.size + width - 1n) / width
    const lines = []
    const part = (from, to, excluded) => { // rows, without to
      if (to - from <= 1n) {
        for (; from < to; from++) lines.push({ row: from })
      } else if (to > from) {
        lines.push({ from: from * width, to: to * width > this.size ? this.size : to * width, excluded })
      }
    }
    let range = 0
    const gap = (from, to) => {
      for (; range < this.ranges.length && this.ranges[range].from < to * width; range++) {
        const first = (this.ranges[range].from + width - 1n) / width
        let end = (this.ranges[range].to + 1n) / width
        if (this.ranges[range].to === this.size - 1n) end = rows
        if (end > to) end = to
        const begin = first > from ? first : from
        if (end <= begin) continue
        part(from, begin, false)
        part(begin, end, true)
        from = end
        if (this.ranges[range].to >= to * width) break // it goes on behind a row
      }
      part(from, to, false)
    }
    if (this.size <= 256n) {
      for (let r = 0n; r < rows; r++) lines.push({ row: r })
    } else {
      const used = new Set([0n])
      for (const at of this.points.keys()) used.add(at / width)
      for (const r of this.ranges) { // rows that are not excluded as a whole
        if (r.from % width !== 0n) used.add(r.from / width)
        if ((r.to + 1n) % width !== 0n) used.add(r.to / width)
      }
      for (const s of this.spans) used.add(s.from / width).add(s.to / width) // so that no line is in and out
      for (const at of this.extra) used.add(at / width)
      let next = 0n
      for (const r of [...used].sort((x, y) => x < y ? -1 : x > y ? 1 : 0)) {
        gap(next, r)
        lines.push({ row: r })
        next = r + 1n
      }
      gap(next, rows)
    }
    const same = this.cols === cols && lines.length === this.lines.length &&
      lines.every((l, i) => l.row === this.lines[i].row && l.from === this.lines[i].from && l.to === this.lines[i].to && l.excluded === this.lines[i].excluded)
    if (same) return
    this.lines = lines
    this.cols = cols
    this.lineOf = new Map(lines.flatMap((l, i) => l.row === undefined ? [] : [[l.row, i]]))
    this.show()
  }

  show() {
    const focused = this.grid.contains(document.activeElement)
    const before = this.chunks.map(c => c.filled)
    this.near.disconnect()
    this.cells.clear()
    this.chunks = []
    this.grid.style.setProperty('--cols', this.cols)
    this.grid.setAttribute('aria-rowcount', this.lines.length)
    this.grid.setAttribute('aria-colcount', this.cols + 1)
    for (let i = 0; i < this.lines.length; i += chunkLines) {
      const lines = this.lines.slice(i, i + chunkLines)
      const gaps = lines.filter(l => l.row === undefined).length
      const box = make('div', { role: 'rowgroup' })
      const row = this.bits === 128 ? '(var(--cell) + var(--gap) * 2 + 19px)' : '(var(--cell) + var(--gap))'
      box.style.height = `calc(${lines.length - gaps} * ${row} + ${gaps} * 26px)`
      box.chunk = { box, lines, first: i, filled: false }
      this.chunks.push(box.chunk)
    }
    this.grid.replaceChildren(...this.chunks.map(c => c.box))
    if (this.current === null || !this.lineOf.has(this.current / BigInt(this.cols))) this.current = this.begin()
    this.chunkOf(this.current).keep = true
    this.chunks.forEach((c, i) => { if (before[i] || c.keep || (i === 0 && before.length === 0)) this.fill(c) })
    for (const c of this.chunks) this.near.observe(c.box)
    if (focused) this.cells.get(this.current).focus({ preventScroll: true })
  }

  begin() {
    let first = null
    for (const at of this.points.keys()) if (first === null || at < first) first = at
    return first ?? (this.size > 1n ? 1n : 0n)
  }

  chunkOf(at) { return this.chunks[Math.floor(this.lineOf.get(at / BigInt(this.cols)) / chunkLines)] }

  // between are the words for rows that are not there.
  between({ from, to, excluded }) {
    let n = to - from
    if (!excluded && this.bits === 32 && to === this.size) n-- // the broadcast address
    return count(n) + ' ' + (excluded ? 'excluded' : kinds[this.draws(from) ? 'free' : 'outside'][1])
  }

  label(row) {
    const address = this.address(row * BigInt(this.cols))
    if (this.bits === 128) return address
    const bytes = address.split('.')
    return (this.hostBits <= 8 ? '.' : '') + bytes.slice(this.hostBits <= 8 ? 3 : this.hostBits <= 16 ? 2 : 1).join('.')
  }

  fill(chunk) {
    if (chunk.filled) return
    chunk.filled = true
    const width = BigInt(this.cols)
    chunk.lines.forEach((line, i) => {
      const row = make('div', { role: 'row', 'aria-rowindex': chunk.first + i + 1 })
      if (line.row === undefined) {
        row.className = 'between'
        row.dataset.from = this.address(line.from)
        row.dataset.to = this.address(line.to - 1n)
        row.append(
          make('span', { class: 'label', 'aria-hidden': 'true' }, this.bits === 32 ? this.label(line.from / width) : ''),
          make('span', { role: 'gridcell', 'aria-colspan': this.cols + 1, 'aria-label': `${row.dataset.from} to ${row.dataset.to}: ${this.between(line)}` },
            line.excluded ? make('span', { class: 'c key', 'data-k': 'excluded', 'aria-hidden': 'true' }, '×') : '… ', this.between(line)))
      } else {
        row.className = 'row'
        row.append(make('span', { class: 'label', role: 'rowheader' }, this.label(line.row)))
        for (let at = line.row * width; at < (line.row + 1n) * width && at < this.size; at++) {
          const cell = document.createElement('div')
          cell.setAttribute('role', 'gridcell')
          cell.dataset.at = at
          this.cells.set(at, cell)
          this.paint(at)
          row.append(cell)
        }
      }
      chunk.box.append(row)
    })
  }

  empty(chunk) {
    if (!chunk.filled || chunk === this.chunkOf(this.current)) return
    for (const cell of chunk.box.querySelectorAll('.c')) this.cells.delete(BigInt(cell.dataset.at))
    chunk.box.replaceChildren()
    chunk.filled = false
  }

  paint(at, fresh) {
    const cell = this.cells.get(at)
    if (!cell) return
    const { kind, a } = this.see(at)
    const words = this.say(at)
    cell.className = 'c' + (only === kind || (only === 'odd' && a && isOdd(a)) ? ' lit' : '') + (fresh && !still.matches ? ' new' : '')
    cell.dataset.k = kind
    cell.textContent = kind === 'edge' ? '·' : kinds[kind][0]
    cell.tabIndex = at === this.current ? 0 : -1
    cell.setAttribute('aria-label', words)
    cell.setAttribute('aria-selected', chosen?.pool === this && chosen.at === at)
    if (kind === 'free') cell.removeAttribute('title')
    else cell.title = words
    cell.toggleAttribute('data-odd', Boolean(a && isOdd(a)))
  }

  paintAll() { for (const at of this.cells.keys()) this.paint(at) }

  // focus takes the keyboard to an address, whose row comes into being if it must.
  focus(at) {
    if (!this.lineOf.has(at / BigInt(this.cols))) {
      this.extra.add(at)
      this.layout(this.cols)
    }
    const before = this.current
    this.current = at
    this.fill(this.chunkOf(at))
    if (before !== null) this.paint(before)
    this.paint(at)
    const cell = this.cells.get(at)
    cell.focus({ preventScroll: true })
    cell.scrollIntoView({ block: 'nearest' })
  }

  // step goes over so many rows, and over what is between them.
  step(rows) {
    const width = BigInt(this.cols)
    let i = this.lineOf.get(this.current / width)
    for (let to = i, left = Math.abs(rows); left > 0;) {
      to += Math.sign(rows)
      if (to < 0 || to >= this.lines.length) break
      if (this.lines[to].row !== undefined) [i, left] = [to, left - 1]
    }
    const at = this.lines[i].row * width + this.current % width
    return at < this.size ? at : this.size - 1n
  }

  nextUsed(forward) {
    let found = null
    for (const at of this.points.keys()) {
      if (forward ? at > this.current && (found === null || at < found) : at < this.current && (found === null || at > found)) found = at
    }
    return found
  }

  key(e) {
    if (this.whereOf(e.target) === null || e.altKey || e.metaKey) return
    const at = this.current, width = BigInt(this.cols), row = at / width
    const inRow = to => to >= 0n && to < this.size && to / width === row
    let to = null
    switch (e.key) {
      case 'ArrowRight': to = inRow(at + 1n) ? at + 1n : this.step(1) === at ? at : this.step(1) / width * width; break
      case 'ArrowLeft': to = inRow(at - 1n) ? at - 1n : this.step(-1) === at ? at : this.step(-1) / width * width + width - 1n; break
      case 'ArrowDown': to = this.step(1); break
      case 'ArrowUp': to = this.step(-1); break
      case 'PageDown': to = this.step(8); break
      case 'PageUp': to = this.step(-8); break
      case 'Home': to = e.ctrlKey ? 0n : row * width; break
      case 'End': to = e.ctrlKey ? this.step(this.lines.length) / width * width + width - 1n : row * width + width - 1n; break
      case 'n': case 'N': if (!e.ctrlKey) to = this.nextUsed(!e.shiftKey) ?? at; break
      case 'Enter': case ' ': choose(this, at, true); break
      case 'Escape': choose(null); break
      default: return
    }
    e.preventDefault()
    if (to === null) return
    if (to >= this.size) to = this.size - 1n
    if (to !== at) this.focus(to)
    if (to !== at && chosen?.pool === this) choose(this, to, false)
  }

  // head shows what the pool's use is, in all.
  head() {
    const u = this.use
    if (!u) return
    const words = []
    if (u.parents?.length) words.push('on ' + u.parents.join(', '))
    if (u.router) words.push('router ' + u.router)
    words.push(plural(u.networks, 'network', 'networks'))
    words.push({ probe: 'the LAN is asked', listen: 'the LAN is listened to', off: 'the LAN is not asked' }[u.conflict] ?? u.conflict)
    this.where.textContent = words.join(' · ')
    const total = (n, one, more) => n > 0 && make('span', {}, make('b', {}, count(n)), ' ' + (n === 1 ? one : more ?? one))
    this.totals.replaceChildren(...[
      total(u.containers, 'container', 'containers'), total(u.gateways, 'gateway', 'gateways'), total(u.others, 'other machine', 'other machines'),
      total(u.reserved, 'reserved'), total(u.excluded, 'excluded'), total(u.resting, 'resting'),
      ...(this.spans.length ? this.spans : [u]).map(s => make('span', {}, make('b', {}, count(s.free)), ' free of ' + count(s.size) + (s.range ? ' in ' + s.range : ''))),
    ].filter(Boolean))
    const part = (kind, n) => {
      if (!(n > 0)) return null
      const i = make('i', { 'data-k': kind })
      i.style.flex = `0 0 ${n / u.size * 100}%`
      return i
    }
    this.bar.replaceChildren(...[
      part('dynamic', u.containers - u.leased), part('leased', u.leased), part('gateway', u.gateways), part('squatter', u.others),
      part('reserved', u.reserved), part('excluded', u.excluded), part('resting', u.resting),
    ].filter(Boolean))
  }
}

function poolOf(subnet) {
  let p = pools.get(subnet)
  if (!p) pools.set(subnet, p = new Pool(subnet))
  return p
}

function find(address) {
  for (const pool of pools.values()) {
    const at = pool.locate(address)
    if (at !== null) return { pool, at }
  }
  return null
}

// What comes.

function take(news, all) {
  const before = new Map()
  if (all) {
    for (const p of pools.values()) p.points.clear(), p.ranges = []
    byKey.clear()
  }
  const touched = new Map() // by pool, the lines that have changed
  const touch = a => {
    const p = poolOf(a.subnet)
    if (!touched.has(p)) touched.set(p, [])
    touched.get(p).push(a)
    return p
  }
  for (const key of news.gone ?? []) {
    const a = byKey.get(key)
    if (!a) continue
    before.set(key, a)
    byKey.delete(key)
    touch(a).remove(a)
  }
  for (const a of news.addresses ?? []) {
    const key = keyOf(a)
    before.set(key, byKey.get(key))
    byKey.set(key, a)
    touch(a).put(a)
  }
  if (news.networks) networks = new Map(news.networks.map(n => [n.id, n]))
  if (news.status) status = news.status
  const wasDown = down
  down = ''
  if (news.status || all) settlePools()
  const cols = columns()
  for (const [p, lines] of all ? [...pools.values()].map(p => [p, []]) : touched) {
    p.layout(cols)
    if (all || lines.some(a => a.kind === 'excluded')) p.paintAll()
    for (const a of lines) {
      const was = before.get(keyOf(a))
      p.paint(p.locate(a.address), !was || was.kind !== a.kind || was.endpoint !== a.endpoint)
    }
  }
  if (!all) tell(before)
  if (wasDown) announce('The plugin answers again.')
  legend()
  matters()
  parents()
  foreign()
  details()
}

// settlePools has a section for each pool, in the plugin's order.
function settlePools() {
  const uses = new Map((status?.pools ?? []).map(u => [u.subnet, u]))
  for (const [subnet, p] of pools) {
    if (uses.has(subnet) || p.points.size > 0) continue
    if (chosen?.pool === p) chosen = null
    p.drop()
    pools.delete(subnet)
  }
  for (const [subnet, u] of uses) {
    const p = poolOf(subnet)
    p.settle(u)
  }
  const order = [...pools.values()].map(p => p.section)
  if (order.length === 0) {
    $('pools').replaceChildren(make('p', { class: 'empty card' }, 'underlay has no pool yet: ', make('code', {}, 'docker network create -d underlay:latest …'), ' makes the first one.'))
  } else if (order.some((s, i) => $('pools').children[i] !== s) || $('pools').children.length !== order.length) {
    $('pools').replaceChildren(...order)
  }
  if (status) $('version').textContent = status.version
}

const columns = () => broad.matches ? 32 : 16

// Words of what has changed.

const log = []

function tell(before) {
  const lines = []
  for (const [key, was] of before) {
    const now = byKey.get(key)
    const address = key.replace(/^x/, '')
    if (!now) {
      lines.push(was.kind === 'excluded' ? `${address} is no longer excluded` : `${address} is free`)
    } else if (!was || kindOf(was) !== kindOf(now) || was.endpoint !== now.endpoint || was.state !== now.state) {
      const words = [kinds[kindOf(now)][1]]
      if (now.container) words.unshift(now.container)
      if (isOdd(now)) words.push(now.state)
      lines.push(`${address}${now.last ? '–' + now.last : ''}: ${words.join(', ')}`)
    }
  }
  if (lines.length === 0) return
  const at = new Date()
  for (const text of lines.slice(0, most)) log.unshift({ at, text })
  if (lines.length > most) log.unshift({ at, text: `${lines.length - most} more addresses have changed` })
  log.length = Math.min(log.length, most)
  $('lately').hidden = false
  $('lately').replaceChildren(make('h2', { id: 'lately-title' }, 'Lately'), make('ul', {}, ...log.map(l =>
    make('li', {}, make('time', { class: 'muted', datetime: l.at.toISOString() }, clock.format(l.at)), make('span', {}, l.text)))))
  announce(lines.length > 3 ? `${lines.length} addresses have changed` : lines.join('. '))
}

// announce has a screen reader say something, all of a second at once.
const announcements = []
function announce(text) {
  announcements.push(text)
  if (announcements.length > 1) return
  setTimeout(() => {
    $('said').textContent = announcements.length > 3 ? `${announcements.length} things have changed` : announcements.join('. ')
    announcements.length = 0
  }, 700)
}

// What is around the grids.

function legend() {
  const counts = Object.fromEntries(Object.keys(kinds).map(k => [k, 0]))
  for (const a of byKey.values()) {
    if (a.kind !== 'excluded') counts[kindOf(a)]++
    if (isOdd(a)) counts.odd++
  }
  for (const p of pools.values()) {
    counts.excluded += Number(p.use?.excluded ?? 0)
    counts.free += p.free()
    counts.outside += Number(p.use?.free ?? 0) - p.free()
  }
  const box = $('legend')
  if (!box.children.length) {
    for (const [kind, [letter, name, means]] of Object.entries(kinds)) {
      box.append(make('button', { type: 'button', 'data-kind': kind, title: means, 'aria-pressed': 'false', onclick: () => alone(kind) },
        make('span', { class: 'c key', 'data-k': kind, 'data-odd': kind === 'odd', 'aria-hidden': 'true' }, letter), name + ' ', make('b', {})))
    }
  }
  for (const b of box.children) {
    const n = counts[b.dataset.kind]
    b.querySelector('b').textContent = count(n)
    b.toggleAttribute('data-none', n === 0)
    b.hidden = ['odd', 'outside'].includes(b.dataset.kind) && n === 0 && only !== b.dataset.kind
  }
}

function alone(kind) {
  only = only === kind ? null : kind
  for (const b of $('legend').children) b.setAttribute('aria-pressed', b.dataset.kind === only)
  if (only) $('pools').dataset.only = only
  else delete $('pools').dataset.only
  for (const p of pools.values()) p.paintAll()
}

let said = ''

function matters() {
  const all = []
  const matter = (grave, what, text, address) => all.push({ grave, what, text, address })
  if (down) matter(true, 'No answer', down)
  const who = a => a.address + (a.container ? ` (${a.container})` : '')
  for (const a of byKey.values()) {
    if (a.conflict) matter(true, 'Conflict', `${who(a)} is in use by ${a.conflict}, too${a.heard ? '; heard ' + clock.format(new Date(a.heard)) : ''}`, a.address)
    if (a.state === 'lost') matter(true, 'Lost', `the container of ${who(a)} has lost its interface: restart it`, a.address)
  }
  const s = status ?? {}
  for (const p of s.parents ?? []) {
    if (p.state !== 'up') matter(true, 'Parent', `${p.name} is ${p.state}${p.since ? ' since ' + calendar.format(new Date(p.since)) : ''}${p.reason ? ': ' + p.reason : ''}`)
  }
  for (const l of s.drift ?? []) matter(false, 'Drift', l)
  for (const l of s.reconcile?.left ?? []) matter(true, 'Not mended', l)
  for (const u of s.pools ?? []) {
    for (const r of u.ranges ?? [{ ...u, range: u.subnet }]) {
      if (Number(r.free) === 0 && Number(r.size) > 0) matter(false, 'Full', `${r.range} has no free address${r.resting ? ' but those that rest' : ''}`)
    }
    if (u.blind) matter(false, 'Not asked', `the LAN of ${u.subnet}: ${u.blind}`)
  }
  for (const l of s.lans ?? []) if (l.blind) matter(false, 'Deaf', `nothing is heard on ${l.link}: ${l.blind}`)
  for (const d of s.dhcp ?? []) if (d.lost) matter(true, 'DHCP', `${plural(d.lost, 'lease', 'leases')} on ${d.link} cannot be renewed at present${d.why ? ': ' + d.why : ''}`)
  if (s.state?.setAside) matter(false, 'State', `a damaged state file of before is ${s.state.setAside}; delete it once all networks work`)

  const text = JSON.stringify(all)
  document.title = (all.length ? `(${all.length}) ` : '') + 'underlay'
  if (text === said) return
  if (said !== '' && all.length) announce(all.slice(0, 2).map(m => m.what + ': ' + m.text).join('. '))
  said = text
  const lines = all.slice(0, most).map(m => make('p', { class: 'matter' + (m.grave ? '' : ' warn') },
    make('span', {}, make('b', {}, (m.grave ? '✖ ' : '▲ ') + m.what), ' ', m.text),
    m.address && make('button', { type: 'button', 'aria-label': 'Show ' + m.address, onclick: () => goTo(m.address) }, 'Show')))
  if (all.length > most) lines.push(make('p', { class: 'matter warn' }, `… and ${all.length - most} more`))
  if (all.length === 0 && status) lines.push(make('p', { class: 'fine' }, '✔ Nothing is the matter.'))
  $('matters').replaceChildren(...lines)
}

function parents() {
  const all = status?.parents ?? []
  $('parents').hidden = all.length === 0
  $('parents').replaceChildren(make('h2', { id: 'parents-title' }, 'Parents'), make('ul', {}, ...all.map(p => make('li', {},
    make('div', { class: 'who' }, make('b', {}, p.name), p.dummy && make('small', {}, 'isolated'),
      make('span', { class: 'state', 'data-s': p.state }, (p.state === 'up' ? '✔ ' : '✖ ') + p.state)),
    make('small', {}, [plural(p.networks, 'network', 'networks'), plural(p.endpoints, 'endpoint', 'endpoints'), p.mtu && 'MTU ' + p.mtu].filter(Boolean).join(' · '),
      p.mac && make('br'), p.mac && make('code', {}, p.mac))))))
}

// foreign says that containers of other IPAM drivers are in no grid.
function foreign() {
  let n = 0
  for (const network of networks.values()) if (network.foreignIPAM) n += network.endpoints
  $('foreign').hidden = n === 0
  $('foreign').replaceChildren(n === 1 ? '1 container has an address' : `${count(n)} containers have addresses`,
    ' of another IPAM driver, in no subnet here: ', make('code', {}, 'underlay endpoints'), ' lists them.')
}

// choose shows the details of an address, or none.
function choose(pool, at, go) {
  const was = chosen
  chosen = pool ? { pool, at } : null
  was?.pool.paint(was.at)
  pool?.paint(at)
  details()
  history.replaceState(null, '', pool ? '#' + pool.address(at) : location.pathname)
  if (!pool) return
  if (go) $('detail-title').focus({ preventScroll: true })
  pool.cells.get(at)?.scrollIntoView({ block: 'nearest' })
}

function back() {
  const was = chosen
  choose(null)
  was?.pool.focus(was.at)
}

let drawn = ''

function details() {
  const box = $('detail')
  if (!chosen) {
    box.hidden = true
    drawn = ''
    return
  }
  const { pool, at } = chosen
  const { kind, a, range, edge } = pool.see(at)
  const network = networks.get(a?.network)
  const parent = network?.parent ?? pool.use?.parents?.join(', ')
  const now = JSON.stringify([pool.subnet, String(at), a, network, parent])
  if (now === drawn) return
  drawn = now
  const focused = box.contains(document.activeElement)
  const rows = []
  const row = (name, value) => value && rows.push(make('dt', {}, name), make('dd', {}, value))
  const code = text => text && make('code', { title: text }, short(text) === text || text.includes(':') ? text : short(text))
  if (range) row('Range', range.a.last ? `${range.a.address} – ${range.a.last}` : range.a.address)
  if (a && isContainer(a)) {
    row('Container', a.container ? make('b', {}, a.container) : 'not known: Docker tells names from 29 on')
    row('State', a.state ?? 'no endpoint has it')
  } else if (a?.container) row(kind === 'reserved' ? 'For' : 'Was', a.container)
  row('MAC', code(a?.mac))
  if (a?.conflict) row('Other MAC', code(a.conflict))
  if (a?.since) row('Since', when(a.since))
  if (a?.heard) row('Heard', when(a.heard))
  row('Parent', parent)
  if (a?.network) row('Network', make('span', {}, code(a.network), network ? ', ' + network.mode : ''))
  row('Endpoint', code(a?.endpoint))
  row('Subnet', pool.subnet)
  const title = make('h2', { id: 'detail-title', tabindex: -1 }, pool.address(at))
  box.replaceChildren(...[
    title, make('button', { type: 'button', class: 'close', 'aria-label': 'Close', onclick: back }, '×'),
    make('p', { class: 'kind' }, make('span', { class: 'c key', 'data-k': kind, 'aria-hidden': 'true' }, edge ? '·' : kinds[kind][0]), make('b', {}, edge ? 'not given out' : kinds[kind][1])),
    make('dl', {}, ...rows),
    make('p', { class: 'note muted' }, edge ? `It ${edge === edges.last ? 'is ' : ''}${edge}.` : kinds[kind][2], a?.note ? ` ${a.note}.` : ''),
  ])
  box.hidden = false
  if (focused) title.focus({ preventScroll: true })
}

function goTo(address) {
  const found = find(address)
  if (!found) return false
  found.pool.focus(found.at)
  choose(found.pool, found.at, false)
  found.pool.cells.get(found.at).scrollIntoView({ block: 'center' })
  return true
}

// Finding.

let hits = [], hit = -1

function search() {
  const text = $('find-text').value.trim().toLowerCase()
  hits = []
  hit = -1
  if (text) {
    const ranked = []
    for (const a of byKey.values()) {
      const rank = a.address === text || a.container?.toLowerCase() === text ? 0
        : a.address.startsWith(text) || a.container?.toLowerCase().startsWith(text) ? 1
          : a.container?.toLowerCase().includes(text) || a.mac?.includes(text) || a.conflict?.includes(text) || a.address.includes(text) ? 2
            : a.endpoint?.startsWith(text) || a.network?.startsWith(text) ? 3 : null
      if (rank !== null) ranked.push([rank, a])
    }
    ranked.sort((x, y) => x[0] - y[0])
    hits = ranked.slice(0, most).map(([, a]) => ({ address: a.address, kind: kindOf(a), more: a.container ?? a.mac ?? '' }))
    const at = find(text)
    if (at && !hits.some(h => h.address === text)) hits.unshift({ address: text, kind: at.pool.see(at.at).kind, more: '' })
  }
  const list = $('found')
  list.hidden = !text
  $('find-text').setAttribute('aria-expanded', Boolean(text))
  list.replaceChildren(...hits.map((h, i) => make('li', { role: 'option', id: 'hit-' + i, 'aria-selected': 'false', onmousedown: e => { e.preventDefault(); pick(i) } },
    make('span', { class: 'c key', 'data-k': h.kind, 'aria-hidden': 'true' }, kinds[h.kind]?.[0] ?? '·'), make('span', {}, h.address), make('span', { class: 'muted' }, h.more))))
  if (text && !hits.length) list.append(make('li', { class: 'none', role: 'option', 'aria-disabled': 'true' }, 'Nobody has it'))
  if (hits.length) mark(0)
}

function mark(i) {
  hit = (i + hits.length) % hits.length
  ;[...$('found').children].forEach((li, j) => li.setAttribute('aria-selected', j === hit))
  $('find-text').setAttribute('aria-activedescendant', 'hit-' + hit)
}

function unfind() {
  $('find-text').value = ''
  $('find-text').removeAttribute('aria-activedescendant')
  search()
}

function pick(i) {
  const { address } = hits[i]
  unfind()
  goTo(address)
}

$('find-text').addEventListener('input', search)
$('find-text').addEventListener('blur', () => { $('found').hidden = true })
$('find-text').addEventListener('focus', search)
$('find-text').addEventListener('keydown', e => {
  if (e.key === 'Escape') unfind()
  else if (e.key === 'ArrowDown' && hits.length) mark(hit + 1)
  else if (e.key === 'ArrowUp' && hits.length) mark(hit - 1)
  else return
  e.preventDefault()
})
$('find').addEventListener('submit', e => {
  e.preventDefault()
  if (hits.length) pick(Math.max(hit, 0))
})
document.addEventListener('keydown', e => {
  if (e.key === '/' && !/^(INPUT|TEXTAREA)$/.test(e.target.tagName) && !e.ctrlKey && !e.metaKey) {
    e.preventDefault()
    $('find-text').focus()
  }
})
$('detail').addEventListener('keydown', e => {
  if (e.key === 'Escape') back()
})
broad.addEventListener('change', () => { for (const p of pools.values()) p.layout(columns()) })
addEventListener('hashchange', () => goTo(decodeURIComponent(location.hash.slice(1))))

// The line to the server, which looks at the plugin for as long as it is open.

let events = null, again = null

function link(state, text) {
  $('link').dataset.state = state
  $('link-text').textContent = text
}

function connect() {
  clearTimeout(again)
  events?.close()
  events = new EventSource('events')
  let first = true
  const on = (name, f) => events.addEventListener(name, e => {
    f(JSON.parse(e.data))
    if (first && name === 'all' && location.hash && !chosen) goTo(decodeURIComponent(location.hash.slice(1)))
    first = false
  })
  on('all', news => { take(news, true); link('live', 'live') })
  on('change', news => { take(news, false); link('live', 'live') })
  on('down', ({ error }) => {
    down = error
    link('down', 'no answer')
    if (!status) $('pools').replaceChildren(make('p', { class: 'empty card' }, 'There is no answer yet. The page goes on by itself once there is one.'))
    matters()
  })
  events.onerror = () => {
    link('down', 'not connected')
    if (events.readyState === EventSource.CLOSED) again = setTimeout(connect, 3000)
  }
}

document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible') return connect()
  clearTimeout(again)
  events?.close()
  link('wait', 'paused')
})
if (document.visibilityState === 'visible') connect()
else link('wait', 'paused')
