// pg-boss: a queue with the policy key_strict_fifo and the key as singletonKey; or, with the option `groups`, the
// key as a group and groupConcurrency as its limit.
//
// Options: `queue` goes into createQueue, `boss` into the constructor, `work` into work().

import { Handlers, go, load, main, sendAll } from './common.mjs'

const { PgBoss } = await load('pg-boss')

async function open (spec, more) {
  const boss = new PgBoss({ connectionString: spec.dsn, ...(spec.options.boss ?? {}), ...more })
  boss.on('error', error => console.error(error))
  await boss.start()
  return boss
}

async function setup (spec) {
  const boss = await open(spec, { supervise: false, schedule: false })
  await boss.stop({ graceful: false })
}

function create (boss, spec, task) {
  const policy = task.ordered && !spec.options.groups ? 'key_strict_fifo' : 'standard'
  return boss.createQueue(task.queue, { policy, retryLimit: 5, retryDelay: 0, ...(spec.options.queue ?? {}) })
}

async function produce (spec, task) {
  const boss = await open(spec, { max: task.connections, supervise: false, schedule: false })
  await create(boss, spec, task)
  const named = job => {
    const found = {}
    if (job.delay) found.startAfter = new Date(Date.now() + job.delay)
    if (task.ordered && spec.options.groups) found.group = { id: job.key }
    else if (task.ordered) found.singletonKey = job.key
    return found
  }
  const one = ([job]) => boss.send(task.queue, job.payload, named(job))
  const many = part => boss.insert(task.queue, part.map(job => ({ data: job.payload, ...named(job) })))
  await sendAll(task, Array(task.connections).fill(task.chunk === 1 ? one : many))
}

async function consume (spec, task) {
  const handlers = new Handlers(task)
  const work = { ...(spec.options.work ?? {}) }
  if (task.concurrency) work.localConcurrency = task.concurrency
  if (task.ordered && spec.options.groups) work.groupConcurrency = task.limit
  const boss = await open(spec, {})
  await create(boss, spec, task)
  await go()
  // A batch's jobs are of different keys: they run beside each other, and each has its own end.
  await boss.work(task.queue, { ...work, perJobResults: true }, jobs => Promise.all(jobs.map(async job => {
    try {
      await handlers.run(job.data)
      return { id: job.id, status: 'completed' }
    } catch {
      return { id: job.id, status: 'failed' }
    }
  })))
}

await main(setup, produce, consume)
