;; zeros NUMBER: writes so many zero bytes
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (local $char i32) (local $at i32) (local $left i32)
    (drop (call $args (i32.const 64) (i32.const 1024)))
    (local.set $at (i32.load (i32.const 68)))
    (block $end
      (loop $next
        (br_if $end (i32.eqz (local.tee $char (i32.load8_u (local.get $at)))))
        (local.set $left
          (i32.add (i32.mul (local.get $left) (i32.const 10))
                   (i32.sub (local.get $char) (i32.const 48))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (i32.store (i32.const 16) (i32.const 32768))
    (loop $more
      (if (local.get $left)
        (then
          (i32.store (i32.const 20)
            (select (local.get $left) (i32.const 32768)
                    (i32.lt_u (local.get $left) (i32.const 32768))))
          (if (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24))
            (then (call $exit (i32.const 1))))
          (local.set $left (i32.sub (local.get $left) (i32.load (i32.const 24))))
          (br $more))))))
