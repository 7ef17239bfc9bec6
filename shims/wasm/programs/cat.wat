;; cat [STATUS]: copies its standard input to its output, at once, until the end, and ends with that
;; status
(module
  (import "wasi_snapshot_preview1" "args_sizes_get"
    (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read"
    (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func $number (param $at i32) (result i32)
    (local $char i32) (local $value i32)
    (block $end
      (loop $next
        (br_if $end (i32.eqz (local.tee $char (i32.load8_u (local.get $at)))))
        (local.set $value
          (i32.add (i32.mul (local.get $value) (i32.const 10))
                   (i32.sub (local.get $char) (i32.const 48))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (local.get $value))
  (func $copy (param $size i32)
    (local $at i32)
    (local.set $at (i32.const 8192))
    (loop $more
      (if (local.get $size)
        (then
          (i32.store (i32.const 16) (local.get $at))
          (i32.store (i32.const 20) (local.get $size))
          (if (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24))
            (then (call $exit (i32.const 1))))
          (local.set $at (i32.add (local.get $at) (i32.load (i32.const 24))))
          (local.set $size (i32.sub (local.get $size) (i32.load (i32.const 24))))
          (br $more)))))
  (func (export "_start")
    (drop (call $args_sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 64) (i32.const 1024)))
    (block $end
      (loop $next
        (i32.store (i32.const 16) (i32.const 8192))
        (i32.store (i32.const 20) (i32.const 32768))
        (if (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24))
          (then (call $exit (i32.const 1))))
        (br_if $end (i32.eqz (i32.load (i32.const 24))))
        (call $copy (i32.load (i32.const 24)))
        (br $next)))
    (if (i32.gt_u (i32.load (i32.const 0)) (i32.const 1))
      (then (call $exit (call $number (i32.load (i32.const 68))))))))
