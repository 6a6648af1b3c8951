// graphile-worker: its runner, and a named queue for each key, which runs one job at a time.
//
// Options: those of its worker preset (concurrentJobs, localQueue, …).

import { Handlers, go, load, main, sendAll } from './common.mjs'

const { makeWorkerUtils, run, Logger } = await load('graphile-worker')
const logger = new Logger(() => () => {})

async function setup (spec) {
  const utils = await makeWorkerUtils({ connectionString: spec.dsn, logger })
  await utils.migrate()
  await utils.release()
}

async function produce (spec, task) {
  const options = { connectionString: spec.dsn, maxPoolSize: task.connections, logger }
  const utils = await makeWorkerUtils(options)
  const runAt = job => job.delay ? new Date(Date.now() + job.delay) : undefined
  const name = job => task.ordered ? job.key : undefined
  const one = ([job]) => utils.addJob(task.queue, job.payload, { queueName: name(job), runAt: runAt(job) })
  const many = part => utils.addJobs(part.map(job => ({
    identifier: task.queue, payload: job.payload, queueName: name(job), runAt: runAt(job)
  })))
  await utils.withPgClient(async () => {})
  await sendAll(task, Array(task.connections).fill(task.chunk === 1 ? one : many))
}

async function consume (spec, task) {
  const handlers = new Handlers(task)
  const worker = { connectionString: spec.dsn, logger, ...spec.options }
  if (task.concurrency) worker.concurrentJobs = task.concurrency
  await go()
  const runner = await run({
    preset: { worker },
    noHandleSignals: true,
    taskList: { [task.queue]: payload => handlers.run(payload) }
  })
  await runner.promise
}

await main(setup, produce, consume)
