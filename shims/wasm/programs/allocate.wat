;; allocate MIB: uses so much memory at a time, and ends with 0 if it can
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (local $char i32) (local $at i32) (local $pages i32)
    (drop (call $args (i32.const 64) (i32.const 1024)))
    (local.set $at (i32.load (i32.const 68)))
    (block $end
      (loop $next
        (br_if $end (i32.eqz (local.tee $char (i32.load8_u (local.get $at)))))
        (local.set $pages
          (i32.add (i32.mul (local.get $pages) (i32.const 10))
                   (i32.sub (local.get $char) (i32.const 48))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (local.set $pages (i32.mul (local.get $pages) (i32.const 16)))
    (local.set $at (memory.grow (local.get $pages)))
    (if (i32.eq (local.get $at) (i32.const -1)) (then (call $exit (i32.const 1))))
    (memory.fill (i32.mul (local.get $at) (i32.const 65536)) (i32.const 1)
                 (i32.mul (local.get $pages) (i32.const 65536)))))
