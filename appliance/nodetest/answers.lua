-- Run by wrk with as many threads as connections: says at the end what became of
-- each connection. wrk itself does not count a request that is never answered.
local ffi = require("ffi")
ffi.cdef[[
typedef struct { long sec, nsec; } timespec;
int clock_gettime(int, timespec *);
]]
local spec = ffi.new("timespec")

local function now()
	ffi.C.clock_gettime(1, spec) -- monotonic
	return tonumber(spec.sec) + tonumber(spec.nsec) / 1e9
end

local threads = {}

function setup(thread)
	table.insert(threads, thread)
end

function init()
	answers, gap, last = 0, 0, now()
end

function response()
	local t = now()
	answers, gap, last = answers + 1, math.max(gap, t - last), t
end

function done()
	local t = now()
	for _, thread in ipairs(threads) do
		local silent = t - thread:get("last")
		print(string.format("connection: %d answers, gap %.3fs, silent %.3fs", thread:get("answers"), math.max(silent, thread:get("gap")), silent))
	end
end
