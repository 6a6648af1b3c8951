// What bench/peers/common.py is, for systems in Node: the same jobs, handlers, journal, and talk with the harness.

import { openSync, writeFileSync, writeSync } from 'node:fs'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const DONE = 0
const FAILED = 1
const BEGUN = 2
const LONG = 5000

/** Import a package of the environment that the harness has made. */
export async function load (name) {
  const require = createRequire(process.env.BENCH_MODULES + '/')
  const module = await import(pathToFileURL(require.resolve(name)).href)
  return module
}

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const now = () => process.hrtime.bigint()

export function jobs (task) {
  const made = []
  for (let place = 0; place < task.count; place++) {
    const number = task.first + place
    const customer = number % task.keys
    const payload = {
      customer: `${task.prefix}${customer}`,
      n: number,
      work: task.work,
      fail: task.fail_every > 0 && number % task.fail_every === 0,
      event: 'invoice.paid',
      invoice: 100000 + number,
      amount: 1000 + number % 977,
      url: `https://customer-${customer}.example.com/hooks/invoices`
    }
    const delayed = task.delay_every > 0 && number % task.delay_every === 1
    if (task.part && delayed !== (task.part === 'delayed')) continue
    const delay = delayed ? task.delay * (1 + number * 7919 % 100) / 100 : 0
    made.push({ key: payload.customer, payload, delay })
  }
  return made
}

export class Handlers {
  constructor (task) {
    this.file = openSync(task.journal, 'a')
    this.failed = new Set()
  }

  note (number, begin, end, state) {
    const record = Buffer.allocUnsafe(32)
    record.writeBigInt64LE(BigInt(number), 0)
    record.writeBigInt64LE(begin, 8)
    record.writeBigInt64LE(end, 16)
    record.writeInt32LE(process.pid, 24)
    record.writeInt32LE(state, 28)
    writeSync(this.file, record)
  }

  async run (payload) {
    const begin = now()
    if (payload.work >= LONG) this.note(payload.n, begin, 0n, BEGUN)
    if (payload.work > 0) await sleep(payload.work)
    else await new Promise(resolve => setImmediate(resolve))
    const failed = payload.fail && !this.failed.has(payload.n)
    if (failed) this.failed.add(payload.n)
    this.note(payload.n, begin, now(), failed ? FAILED : DONE)
    if (failed) throw new Error('deliberate')
  }
}

const say = line => process.stdout.write(line + '\n')

/** Say that everything is prepared, wait for the start; from then on the process ends when the harness closes. */
export function go () {
  return new Promise(resolve => {
    process.stdin.once('data', resolve)
    process.stdin.on('end', () => process.exit(0))
    say('ready')
  })
}

/** Send all jobs with so many senders at once, each a connection, and tell how long it took. */
export async function sendAll (task, senders) {
  const made = jobs(task)
  const parts = []
  for (let start = 0; start < made.length; start += task.chunk) parts.push(made.slice(start, start + task.chunk))
  const stamps = []
  let sent = 0
  await go()
  const began = now()
  await Promise.all(senders.map(async (send, nth) => {
    const begun = Number(now()) / 1e6
    for (let place = nth, turn = 0; place < parts.length; place += senders.length, turn++) {
      if (task.seconds && Number(now()) / 1e6 - begun > task.seconds * 1000) return
      if (task.interval) await sleep(Math.max(0, begun + turn * task.interval - Number(now()) / 1e6))
      await send(parts[place])
      sent += parts[place].length
      if (task.apart) await sleep(task.apart)
      if (task.stamps) {
        const at = now()
        for (const job of parts[place]) stamps.push(`${job.payload.n} ${at}`)
      }
    }
  }))
  const ended = now()
  if (task.stamps) writeFileSync(task.stamps, stamps.join('\n') + '\n')
  say(JSON.stringify({ began: Number(began), ended: Number(ended), sent }))
}

export async function main (setup, produce, consume) {
  const spec = JSON.parse(process.argv[2])
  if (spec.role === 'setup') {
    await setup(spec)
    say(JSON.stringify({ done: true }))
    process.exit(0)
  }
  if (spec.role === 'produce') {
    await produce(spec, spec.produce)
    process.exit(0)
  }
  await consume(spec, spec.consume)
}
