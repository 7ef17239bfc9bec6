;; terminal: writes the line terminal if its input and output are one, reads a line, writes it to its
;; standard error with got before it, and ends with 4
(module
  (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $stat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read"
    (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 256) "terminal\n")
  (data (i32.const 512) "got ")
  (func $is_terminal (param $fd i32) (result i32)
    (drop (call $stat (local.get $fd) (i32.const 64)))
    (i32.eq (i32.load8_u (i32.const 64)) (i32.const 2))) ;; a character device
  (func (export "_start")
    (if (i32.and (call $is_terminal (i32.const 0)) (call $is_terminal (i32.const 1)))
      (then
        (i32.store (i32.const 16) (i32.const 256))
        (i32.store (i32.const 20) (i32.const 9))
        (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))))
    (i32.store (i32.const 16) (i32.const 516))
    (i32.store (i32.const 20) (i32.const 4096))
    (drop (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
    (i32.store (i32.const 16) (i32.const 512))
    (i32.store (i32.const 20) (i32.add (i32.load (i32.const 24)) (i32.const 4)))
    (drop (call $write (i32.const 2) (i32.const 16) (i32.const 1) (i32.const 24)))
    (call $exit (i32.const 4))))
