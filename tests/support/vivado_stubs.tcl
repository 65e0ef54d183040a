# Stands in for Vivado: checks the shape of every command that the projects use, and records what was
# made, one tab-separated line each: kind, then values.
# argv: folder to run in, file to record in, script, interface pins of the accelerator, its clocks
# and resets (";" between).

lassign $argv folder record script interfaces clocks
cd $folder
set out [open $record w]
set accelerator [split $interfaces ";"]
set clock_pins [split $clocks ";"]
array set cells {}
array set joined {}
array set driver {}
array set properties {}

proc note {kind args} { puts $::out [join [list $kind {*}$args] "\t"] }
proc fail {text} { error "stub: $text" }
proc unknown {name args} { fail "no command $name" }

# "-flag value" pairs and single flags out of args; the rest is returned.
proc options {arguments valued single} {
  upvar 1 opt opt
  array set opt {}
  set rest {}
  for {set i 0} {$i < [llength $arguments]} {incr i} {
    set word [lindex $arguments $i]
    if {$word in $valued} {
      incr i
      if {$i >= [llength $arguments]} { fail "$word has no value" }
      set opt($word) [lindex $arguments $i]
    } elseif {$word in $single} {
      set opt($word) 1
    } elseif {[string match -* $word]} {
      fail "no option $word"
    } else {
      lappend rest $word
    }
  }
  return $rest
}

# ---------------------------------------------------------------- projects and packaging

proc create_project {args} {
  set rest [options $args {-part} {-force}]
  if {[llength $rest] != 2 || ![info exists opt(-part)]} { fail "create_project $args" }
  note project {*}$rest $opt(-part)
}
proc current_project {} { return project }
proc current_fileset {} { return sources_1 }
proc close_project {} {}
proc add_files {files} { foreach file $files { if {![file exists $file]} { fail "no $file" } } }
proc update_compile_order {args} { options $args {-fileset} {} }
proc update_ip_catalog {} {}
proc get_board_parts {args} {
  set pattern [options $args {} {-quiet -latest_file_version}]
  note board $pattern
  return [list vendor:board:part0:1.0]
}
proc get_files {name} { return $name }
proc make_wrapper {args} { options $args {-files} {-top -import} }
proc launch_runs {args} {
  set rest [options $args {-to_step -jobs} {}]
  if {$rest ne "impl_1" || ![string is integer -strict $opt(-jobs)]} { fail "launch_runs $args" }
  note launch $opt(-to_step)
  file mkdir build/project/system.runs/impl_1 build/project/system.gen/sources_1/bd/system/hw_handoff
  set suffix [expr {$opt(-to_step) eq "write_bitstream" ? "bit" : "pdi"}]
  set stems [expr {$suffix eq "bit" ? "system_wrapper" : "system_wrapper_boot system_wrapper_pld"}]
  foreach stem $stems {
    close [open build/project/system.runs/impl_1/$stem.$suffix w]
  }
  close [open build/project/system.gen/sources_1/bd/system/hw_handoff/system.hwh w]
}
proc wait_on_run {run} {}
proc get_runs {run} { return $run }
proc open_run {run} {}
proc report_utilization {args} { options $args {-file} {}; close [open $opt(-file) w] }
proc report_timing_summary {args} { options $args {-file} {}; close [open $opt(-file) w] }
proc get_property {name object} {
  if {$name eq "PROGRESS"} { return [expr {[info exists ::env(STUB_FAILS)] ? "40%" : "100%"}] }
  if {$name eq "STATUS"} { return "route_design ERROR" }
  fail "get_property $name"
}
namespace eval ipx {
  proc package_project {args} {
    ::options $args {-root_dir -vendor -library -taxonomy -set_current} {-import_files -force}
    ::note package $opt(-root_dir) $opt(-vendor) $opt(-library)
    file mkdir $opt(-root_dir)
    close [open $opt(-root_dir)/component.xml w]
  }
  proc current_core {} { return core }
  proc infer_bus_interface {port kind core} { ::note infer $port $kind }
  proc associate_bus_interfaces {args} {
    set rest [::options $args {-busif -clock -reset} {}]
    if {$rest ne "core"} { ::fail "associate_bus_interfaces $args" }
    if {[info exists opt(-busif)]} {
      ::note associate $opt(-busif) $opt(-clock)
    } else {
      ::note associate-reset $opt(-reset) $opt(-clock)
    }
  }
  proc get_memory_maps {args} { ::options $args {-of_objects} {} }
  proc get_address_blocks {args} { ::options $args {-of_objects} {} }
  proc create_xgui_files {core} {}
  proc update_checksums {core} {}
  proc save_core {core} {}
}
proc package_xo {args} {
  options $args {-xo_path -kernel_name -ip_directory -kernel_xml} {}
  foreach needed {-xo_path -kernel_name -ip_directory -kernel_xml} {
    if {![info exists opt($needed)]} { fail "package_xo without $needed" }
  }
  if {![file exists $opt(-kernel_xml)]} { fail "no $opt(-kernel_xml)" }
  note xo $opt(-xo_path) $opt(-kernel_name)
}
proc set_property {args} {
  if {[lindex $args 0] eq "-dict"} {
    if {[llength $args] != 3 || [llength [lindex $args 1]] % 2} { fail "set_property $args" }
    lassign $args flag pairs object
  } else {
    if {[llength $args] != 3} { fail "set_property $args" }
    set pairs [lrange $args 0 1]
    set object [lindex $args 2]
  }
  if {$object eq ""} { fail "set_property $pairs of nothing" }
  foreach {name value} $pairs { note property $object $name $value }
}

# ---------------------------------------------------------------- block designs

proc create_bd_design {name} { note design $name }
proc create_bd_cell {args} {
  set name [options $args {-type -vlnv} {}]
  if {[info exists ::cells($name)]} { fail "cell $name twice" }
  if {$opt(-type) ne "ip" || ![regexp {^[^:]+:[^:]+:[^:]+(:[^:]+)?$} $opt(-vlnv)]} { fail $args }
  set ::cells($name) $opt(-vlnv)
  note cell $name $opt(-vlnv)
  return $name
}
proc get_bd_cells {name} {
  if {![info exists ::cells($name)]} { fail "no cell $name" }
  return $name
}
proc find_pin {pin} {
  set cell [lindex [split $pin /] 0]
  get_bd_cells $cell
  return $pin
}
proc get_bd_pins {pin} { find_pin $pin }
proc get_bd_intf_pins {pin} {
  lassign [split [find_pin $pin] /] cell name
  if {[string match flightllm:* $::cells($cell)] && $name ni $::accelerator} { fail "no pin $pin" }
  return $pin
}
proc connect_bd_intf_net {one two} {
  foreach pin [list $one $two] {
    if {[info exists ::joined($pin)]} { fail "$pin is connected twice" }
    set ::joined($pin) 1
  }
  note join $one $two
}
proc connect_bd_net {source args} {
  if {![llength $args]} { fail "a net of $source alone" }
  foreach sink $args {
    if {[info exists ::driver($sink)]} { fail "$sink is driven twice" }
    set ::driver($sink) $source
    note net $source $sink
  }
}
proc get_bd_addr_spaces {space} { find_pin $space }
proc get_bd_addr_segs {segment} { find_pin $segment }
proc assign_bd_address {args} {
  set segment [options $args {-offset -range -target_address_space} {-force}]
  if {$segment eq ""} { return [note address-rest] }
  note address $opt(-target_address_space) $segment $opt(-offset) $opt(-range)
}
proc apply_bd_automation {args} {
  set cell [options $args {-rule -config} {}]
  get_bd_cells $cell
  if {[llength $opt(-config)] % 2} { fail "automation of $cell: $opt(-config)" }
  note automation $opt(-rule) $cell
}
proc validate_bd_design {} {
  foreach {cell vlnv} [array get ::cells] {
    if {![string match flightllm:* $vlnv]} continue
    foreach name $::accelerator {
      if {![info exists ::joined($cell/$name)]} { fail "$cell/$name is not connected" }
    }
    foreach pin $::clock_pins {
      if {![info exists ::driver($cell/$pin)]} { fail "$cell/$pin is not driven" }
    }
  }
  note validated
}
proc save_bd_design {} {}

# ---------------------------------------------------------------- before placement

proc get_cells {args} {
  options $args {-filter} {-hierarchical}
  return [lindex [split $opt(-filter)] end]
}

set argv [list 4]
source $script
close $out
