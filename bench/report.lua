-- What a wrk run amounts to, as one line of JSON.
function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "microseconds": %d, "bytes": %d, "p99": %d, "status": %d, "socket": %d, "timeout": %d}\n',
      summary.requests, summary.duration, summary.bytes, latency:percentile(99),
      errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
