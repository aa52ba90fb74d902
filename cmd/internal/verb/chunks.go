package verb

// LargestChunk bounds --chunk-size below what the format takes: several chunks are
// in memory at once.
const LargestChunk = 4 << 20

// ChunkSizes says which sizes --chunk-size takes.
const ChunkSizes = "it is a power of two from 4 KiB to 4 MiB"

// MostWorkers bounds --workers.
const MostWorkers = 1024
