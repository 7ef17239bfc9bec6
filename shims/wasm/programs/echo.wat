;; echo TEXT [ERROR [STATUS]]: writes a line to its standard output, one to its standard error, and
;; ends with that status
(module
  (import "wasi_snapshot_preview1" "args_sizes_get"
    (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  ;; Writes a text, with the end of a line where its own end was.
  (func $line (param $fd i32) (param $text i32)
    (local $end i32)
    (local.set $end (local.get $text))
    (block $found
      (loop $next
        (br_if $found (i32.eqz (i32.load8_u (local.get $end))))
        (local.set $end (i32.add (local.get $end) (i32.const 1)))
        (br $next)))
    (i32.store8 (local.get $end) (i32.const 10))
    (i32.store (i32.const 16) (local.get $text))
    (i32.store (i32.const 20)
      (i32.add (i32.sub (local.get $end) (local.get $text)) (i32.const 1)))
    (drop (call $write (local.get $fd) (i32.const 16) (i32.const 1) (i32.const 24))))
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
  (func (export "_start")
    (drop (call $args_sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 64) (i32.const 1024)))
    (call $line (i32.const 1) (i32.load (i32.const 68)))
    (if (i32.gt_u (i32.load (i32.const 0)) (i32.const 2))
      (then (call $line (i32.const 2) (i32.load (i32.const 72)))))
    (if (i32.gt_u (i32.load (i32.const 0)) (i32.const 3))
      (then (call $exit (call $number (i32.load (i32.const 76))))))))
