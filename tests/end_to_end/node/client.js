'use strict'
// A client of nablad in Node.js, from the .proto files alone:
//
//   npm ci && node client.js 127.0.0.1:50051
//
// It prints, as JSON, what functions there are, one of them in detail, a gradient, a Hessian in three forms, and the reason
// of a refused call.

const path = require('node:path')
const { promisify } = require('node:util')
const grpc = require('@grpc/grpc-js')
const protoLoader = require('@grpc/proto-loader')

const PROTOS = process.env.NABLAD_PROTOS ?? path.join(__dirname, '../../../protos')
const OPTIONS = { keepCase: true, longs: Number, enums: String, defaults: true }

const definition = protoLoader.loadSync(
  ['nablad/v1/catalog.proto', 'nablad/v1/differentiation.proto'],
  { ...OPTIONS, includeDirs: [PROTOS] }
)
const { nablad } = grpc.loadPackageDefinition(definition)

// The two messages of google.rpc that error details need, so that no other .proto files are.
const google = protoLoader.fromJSON({
  nested: {
    Any: { fields: { type_url: { type: 'string', id: 1 }, value: { type: 'bytes', id: 2 } } },
    Status: { fields: {
      code: { type: 'int32', id: 1 },
      message: { type: 'string', id: 2 },
      details: { rule: 'repeated', type: 'Any', id: 3 }
    } },
    ErrorInfo: { fields: {
      reason: { type: 'string', id: 1 },
      domain: { type: 'string', id: 2 },
      metadata: { keyType: 'string', type: 'string', id: 3 }
    } }
  }
}, OPTIONS)

/** A service whose methods return promises, and give up after a minute. */
function connect (Service, address) {
  const client = new Service(address, grpc.credentials.createInsecure())
  const call = (method) => (request) =>
    promisify(client[method]).call(client, request, new grpc.Metadata(), { deadline: Date.now() + 60_000 })
  return new Proxy({}, { get: (_, method) => method === 'close' ? () => client.close() : call(method) })
}

/** A vector of float64 as an input. The wire is little-endian on every machine, so no Float64Array is sent as it is. */
function vector (name, numbers) {
  const data = Buffer.alloc(8 * numbers.length)
  numbers.forEach((number, index) => data.writeDoubleLE(number, 8 * index))
  return { name, tensor: { dtype: 'DTYPE_FLOAT64', shape: [numbers.length], data } }
}

/** The numbers of a float64 tensor, in row-major order. */
function numbers ({ tensor: { dtype, data } }) {
  if (dtype !== 'DTYPE_FLOAT64') throw new TypeError(`expected float64, got ${dtype}`)
  return Array.from({ length: data.length / 8 }, (_, index) => data.readDoubleLE(8 * index))
}

/** The google.rpc.ErrorInfo of a failed call: a reason, and metadata for programs. */
function errorInfo (error) {
  const [bytes] = error.metadata.get('grpc-status-details-bin')
  const { details } = google.Status.deserialize(bytes)
  const info = details.find(({ type_url: url }) => url.endsWith('/google.rpc.ErrorInfo'))
  return google.ErrorInfo.deserialize(info.value)
}

/** A Hessian in blocks of rows, as they come. */
async function streamedRows (service, request) {
  const rows = []
  let columns
  for await (const { header, block } of service.StreamHessian(request)) {
    if (header) columns = header.column_count
    if (!block) continue
    const all = numbers(block)
    while (all.length) rows.push(all.splice(0, columns))
  }
  return rows
}

/** The product of the Hessian at a point with one vector, over a stream that could carry many. */
function linearizedProduct (service, point, tangent) {
  return new Promise((resolve, reject) => {
    const stream = service.Linearize()
    stream.on('error', reject)
    stream.on('data', ({ opened, answers }) => {
      if (opened) stream.write({ products: [{ id: 7, operator: 'OPERATOR_HVP', vectors: [tangent] }] })
      for (const { id, products } of answers) {
        stream.end()
        resolve({ id, product: numbers(products[0]) })
      }
    })
    stream.write({ point })
  })
}

async function main (address) {
  const catalog = connect(nablad.v1.CatalogService, address)
  const differentiation = connect(nablad.v1.DifferentiationService, address)

  const { functions } = await catalog.ListFunctions({})
  const { function: rosenbrock } = await catalog.DescribeFunction({ function: 'rosenbrock' })
  const { values, gradients, execution } = await differentiation.Gradient({
    function: 'rosenbrock',
    inputs: [vector('x', [1, 2, 3])]
  })
  const refusal = await differentiation.Gradient({ function: 'no_such_function' }).then(
    () => { throw new Error('a function that does not exist was differentiated') },
    (error) => ({ code: grpc.status[error.code], ...errorInfo(error) })
  )
  const asked = { function: 'rosenbrock', inputs: [vector('x', [1, 2, 3])] }
  const { sparse } = await differentiation.Hessian({ ...asked, structure: 'HESSIAN_STRUCTURE_SPARSE' })
  const streams = new nablad.v1.DifferentiationService(address, grpc.credentials.createInsecure())
  const rows = await streamedRows(streams, asked)
  const linearized = await linearizedProduct(streams, asked, vector('x', [1, 0, 0]))
  streams.close()
  catalog.close()
  differentiation.close()

  console.log(JSON.stringify({
    functions: functions.map(({ name }) => name),
    rosenbrock: { inputs: rosenbrock.signature.inputs, operators: rosenbrock.operators },
    gradient: { function: execution.function, value: numbers(values[0]), gradient: numbers(gradients[0]) },
    rows,
    sparse: { values: numbers({ tensor: sparse.values }), nonzeros: sparse.pattern.row_indices.shape[0] },
    linearized,
    refusal
  }, null, 2))
}

main(process.argv[2] ?? '127.0.0.1:50051').catch((error) => {
  console.error(error)
  process.exitCode = 1
})
